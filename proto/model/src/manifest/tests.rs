use super::*;

const LEAST: &str = "schema = 1\n[function]\nname = \"hello\"\n";

fn with(rest: &str) -> Result<Manifest, ManifestError> {
    Manifest::from_toml(&format!("{LEAST}{rest}"))
}

/// What an author reads about `rest`.
#[track_caller]
fn refusal(rest: &str) -> String {
    match with(rest) {
        Ok(manifest) => panic!("accepted: {manifest:?}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn a_manifest_with_a_name_alone_gets_the_defaults() {
    let manifest = with("").unwrap();
    assert_eq!(manifest.function.name.as_str(), "hello");
    assert_eq!(manifest.function.tenant, None);
    assert_eq!(
        manifest.limits.memory_bytes,
        crate::limits::DEFAULT_MEMORY_BYTES
    );
    assert_eq!(manifest.limits.cpu_ms, manifest.limits.deadline_ms);
    assert_eq!(manifest.scale.isolation, Isolation::Request);
    assert_eq!(manifest.rollout.waves, [10, 50, 100].map(WaveRule::percent));
    assert_eq!(manifest.rollout.probe_path, "/");
    assert_eq!(manifest.rollout.max_error_ppm, 10_000);
}

#[test]
fn every_key_of_the_file_is_read() {
    let manifest = Manifest::from_toml(
        r#"
        schema = 1
        [function]
        name = "hello"
        tenant = "acme"
        description = "Says hello."
        args = ["hello", "-v", ""]
        inetd = false
        [build]
        command = "make"
        output = "out/hello"
        [limits]
        memory = "32MiB"
        deadline = "3s"
        cpu = "500ms"
        request_body = "64KiB"
        response_body = "2MB"
        concurrency = 0x10
        [scale]
        isolation = "instance"
        concurrency = 8
        min = 2
        max = 6
        cooldown = "90s"
        [env]
        GREETING = "hi"
        [files]
        "/www" = "public"
        "/etc/motd" = "./etc/motd.txt"
        [secrets]
        [network]
        allow = ["api.example.com:443"]
        [placement]
        regions = ["eu", "us-east"]
        labels = ["disk=ssd", "gpu="]
        [rollout]
        waves = ["ring=canary,bake=10m", 34, "67%", 100]
        quorum = "80%"
        skip_after = "30s"
        bake = "2s"
        probe = "/health?deep=1"
        max_error_rate = "0.5%"
        [rollout.gates]
        worse_by = "100%"
        max_crash_rate = "0.1%"
        slower_by = "off"
        slower_at_least = "20ms"
        false_alarms = "0.1%"
        "#,
    )
    .unwrap();
    let expected = Manifest {
        schema: 1,
        function: Function {
            tenant: Some("acme".parse().unwrap()),
            name: "hello".parse().unwrap(),
            description: "Says hello.".into(),
            args: vec!["hello".into(), "-v".into(), String::new()],
            inetd: false,
        },
        build: Build {
            command: Some("make".into()),
            output: Some("out/hello".into()),
        },
        limits: Limits {
            memory_bytes: 32 << 20,
            deadline_ms: 3_000,
            cpu_ms: 500,
            request_body_bytes: 64 << 10,
            response_body_bytes: 2_000_000,
            concurrency: 16,
        },
        scale: Scale {
            isolation: Isolation::Instance,
            concurrency: Some(8),
            min: 2,
            max: Some(6),
            cooldown_ms: Some(90_000),
        },
        env: BTreeMap::from([("GREETING".into(), "hi".into())]),
        files: BTreeMap::from([
            ("/www".into(), "public".into()),
            ("/etc/motd".into(), "./etc/motd.txt".into()),
        ]),
        placement: Placement {
            regions: vec!["eu".into(), "us-east".into()],
            labels: vec!["disk=ssd".into(), "gpu=".into()],
        },
        network: Network {
            allow: vec!["api.example.com:443".into()],
        },
        rollout: Rollout {
            waves: ["ring=canary,bake=10m", "34%", "67%", "100%"]
                .map(|wave| wave.parse().unwrap())
                .to_vec(),
            bake_ms: 2_000,
            probe_path: "/health?deep=1".into(),
            max_error_ppm: 5_000,
            min_requests: 0,
            quorum: Some(Amount::Percent(80)),
            skip_after_ms: Some(30_000),
            gates: Gates {
                worse_percent: 100,
                max_crash_ppm: 1_000,
                slower_percent: None,
                slower_ms: 20,
                false_alarm_ppm: 1_000,
            },
        },
    };
    assert_eq!(manifest, expected);
}

#[test]
fn memory_is_rounded_up_to_whole_pages() {
    let manifest = with("[limits]\nmemory = \"10001kB\"").unwrap();
    assert_eq!(manifest.limits.memory_bytes, 10_002_432);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
    assert_names(
        &refusal("[limits]\nmemroy = \"1MiB\""),
        &["line 5", "`limits.memroy`", "`memory`"],
    );
    assert_names(&refusal("[limit]\n"), &["line 4", "`limit`", "`limits`"]);
    assert_names(
        &refusal("memory = \"1MiB\""),
        &["`memory` belongs in [limits]"],
    );
    assert_names(
        &refusal("[scale]\nmax_eror_rate = 1"),
        &["`max_error_rate` in [rollout]"],
    );
    assert_names(
        &refusal("[scale]\nxyzzy = 1"),
        &[
            "`scale.xyzzy`",
            "known here: isolation, min, max, cooldown, concurrency",
        ],
    );
}

#[test]
fn of_several_unknown_keys_the_first_in_the_file_is_told() {
    assert_names(
        &refusal("zeta = 1\n[alpha]\n"),
        &["line 4", "`function.zeta`"],
    );
}

#[test]
fn a_wrong_unit_is_refused_with_the_units_there_are() {
    let text = refusal("[limits]\nmemory = \"64Mb\"");
    assert_names(
        &text,
        &["line 5", "`limits.memory`", "\"64Mb\"", "KiB, MiB, GiB"],
    );
    let text = refusal("[limits]\ndeadline = \"10 seconds\"");
    assert_names(&text, &["`limits.deadline`", "\"10 seconds\"", "ms, s, m"]);
    let text = refusal("[rollout]\nmax_error_rate = \"1 percent\"");
    assert_names(&text, &["`rollout.max_error_rate`", "\"1 percent\"", "ppm"]);
}

#[test]
fn a_number_without_a_unit_is_refused() {
    let text = refusal("[limits]\nmemory = 67108864");
    assert_names(&text, &["`limits.memory` = 67108864", "in quotes"]);
    assert_names(
        &refusal("[limits]\ndeadline = 1.5"),
        &["`limits.deadline` = 1.5", "duration"],
    );
}

#[test]
fn a_negative_limit_is_refused() {
    assert_names(
        &refusal("[limits]\nmemory = \"-1MiB\""),
        &["`limits.memory`", "\"-1MiB\""],
    );
    assert_names(&refusal("[limits]\nmemory = -1"), &["`limits.memory` = -1"]);
    let text = refusal("[limits]\nconcurrency = -1");
    assert_names(
        &text,
        &["line 5", "`limits.concurrency` = -1", "not negative"],
    );
}

#[test]
fn a_limit_out_of_bounds_is_refused_with_the_bounds() {
    let text = refusal("[limits]\nmemory = \"5GiB\"");
    assert_names(
        &text,
        &["line 5", "`limits.memory` = \"5GiB\"", "1MiB to 4GiB"],
    );
    assert_names(
        &refusal("[limits]\nmemory = \"1KiB\""),
        &["`limits.memory`", "1MiB to 4GiB"],
    );
    assert_names(
        &refusal("[limits]\nmemory = \"99999999999999GiB\""),
        &["`limits.memory`"],
    );
    assert_names(
        &refusal("[limits]\ndeadline = \"16m\""),
        &["`limits.deadline`", "1ms to 15m"],
    );
    assert_names(
        &refusal("[limits]\ndeadline = \"0s\""),
        &["`limits.deadline`", "1ms to 15m"],
    );
    assert_names(
        &refusal("[limits]\ncpu = \"1h\""),
        &["`limits.cpu`", "1ms to 15m"],
    );
    assert_names(
        &refusal("[limits]\nconcurrency = 0"),
        &["`limits.concurrency`", "1 to 1024"],
    );
    let text = refusal("[limits]\nconcurrency = 99999999999");
    assert_names(&text, &["`limits.concurrency` = 99999999999", "1 to 1024"]);
    assert_names(
        &refusal("[limits]\nrequest_body = \"33MiB\""),
        &["0B to 32MiB"],
    );
    assert_names(
        &refusal("[limits]\nresponse_body = \"65MiB\""),
        &["0B to 64MiB"],
    );
    assert_names(&refusal("[scale]\nmin = 257"), &["`scale.min`", "0 to 256"]);
    assert_names(
        &refusal("[scale]\nmax = 0"),
        &["`scale.max` = 0", "1 to 1024"],
    );
    assert_names(
        &refusal("[scale]\nmin = 3\nmax = 2"),
        &["`scale.min` = 3", "at most `scale.max`"],
    );
    assert_names(
        &refusal("[scale]\ncooldown = \"10ms\""),
        &["`scale.cooldown`", "one second to a day"],
    );
}

#[test]
fn a_bad_name_is_refused_with_what_a_name_is() {
    let text = Manifest::from_toml("schema = 1\n[function]\nname = \"Hello\"").unwrap_err();
    assert_names(
        &text.to_string(),
        &["line 3", "`function.name`", "\"Hello\"", "a-z, 0-9"],
    );
}

#[test]
fn what_is_missing_is_named() {
    let error = Manifest::from_toml("[function]\nname = \"hello\"").unwrap_err();
    assert_names(&error.to_string(), &["`schema` is missing", "schema = 1"]);
    let error = Manifest::from_toml("schema = 1").unwrap_err();
    assert_names(&error.to_string(), &["`function.name` is missing"]);
    let error = Manifest::from_toml("schema = 2\n[function]\nname = \"a\"").unwrap_err();
    assert_names(&error.to_string(), &["line 1", "`schema` = 2", "must be 1"]);
}

#[test]
fn secrets_in_a_manifest_are_refused_with_the_place_where_they_belong() {
    assert!(with("[secrets]\n").is_ok());
    assert_names(
        &refusal("[secrets]\nKEY = \"x\""),
        &["line 5", "holm secrets set"],
    );
}

#[test]
fn a_network_names_hosts_and_ports_and_nothing_else() {
    assert!(with("[network]\nallow = []").is_ok_and(|manifest| manifest.network.is_empty()));
    assert_names(
        &refusal("[network]\nallow = [\"https://example.com\"]"),
        &[
            "line 5",
            "network.allow",
            "HOST:PORT",
            "https://example.com",
        ],
    );
    assert_names(
        &refusal("[network]\nalow = []"),
        &["network.alow", "did you mean `allow`?"],
    );
    let many = vec!["\"a.example.com:1\""; 65].join(", ");
    assert_names(
        &refusal(&format!("[network]\nallow = [{many}]")),
        &["network.allow", "at most 64 places"],
    );
    // What allows nothing is signed as it always was.
    let text = serde_json::to_string(&with("").unwrap()).unwrap();
    assert!(!text.contains("network"), "{text}");
}

#[test]
fn environment_variables_that_holm_sets_itself_are_refused() {
    assert_names(
        &refusal("[env]\nPORT = \"80\""),
        &["`env.PORT`", "set by Holm"],
    );
    assert_names(
        &refusal("[env]\nHOLM_X = \"1\""),
        &["`env.HOLM_X`", "set by Holm"],
    );
    assert_names(&refusal("[env]\n\"a=b\" = \"1\""), &["`env.a=b`"]);
    assert_names(&refusal("[env]\nA = \"x\\u0000\""), &["`env.A`", "NUL"]);
    assert_names(&refusal("[env]\nA = 1"), &["`env.A` = 1", "in quotes"]);
    let long = format!("[env]\nA = \"{}\"", "x".repeat(MAX_ENV_BYTES));
    assert_names(&refusal(&long), &["`env`", "bytes of names and values"]);
}

#[test]
fn waves_rise_and_end_with_the_whole_fleet() {
    for bad in [
        "[]",
        "[50]",
        "[50, 50, 100]",
        "[60, 50, 100]",
        "[0, 100]",
        "[101]",
        "[-1]",
        "100",
    ] {
        let text = refusal(&format!("[rollout]\nwaves = {bad}"));
        assert_names(&text, &["`rollout.waves`", bad, "rising"]);
    }
    for (bad, named) in [
        ("[\"baek=1s\", 100]", "did you mean `bake`"),
        ("[\"ring=canary\"]", "the last one 100%"),
        ("[1.5, 100]", "a list of waves"),
    ] {
        let text = refusal(&format!("[rollout]\nwaves = {bad}"));
        assert_names(&text, &["`rollout.waves`", named]);
    }
    for (bad, named) in [
        ("worse_bye = \"5%\"", "did you mean `worse_by`"),
        ("worse_by = \"20000%\"", "0% to 10000%"),
        ("slower_by = \"1.5%\"", "a whole number and %"),
        ("slower_by = 50", "in quotes"),
        ("false_alarms = \"0%\"", "1ppm to 100%"),
        ("max_error_rate = \"1%\"", "belongs in [rollout]"),
    ] {
        let text = refusal(&format!("[rollout.gates]\n{bad}"));
        assert_names(&text, &["rollout.gates", named]);
    }
    assert_names(
        &refusal("[rollout]\ngates = 1"),
        &["`rollout.gates`", "a section"],
    );
    for bad in ["0", "\"0%\"", "\"most\"", "true"] {
        let text = refusal(&format!("[rollout]\nquorum = {bad}"));
        assert_names(&text, &["`rollout.quorum`", "a share of the nodes"]);
    }
    assert_names(
        &refusal("[rollout]\nskip_after = \"25h\""),
        &["`rollout.skip_after`", "0ms to 24h"],
    );
    assert_names(
        &refusal("[rollout]\nbake = \"25h\""),
        &["`rollout.bake`", "0ms to 24h"],
    );
    assert_names(
        &refusal("[rollout]\nprobe = \"health\""),
        &["`rollout.probe`", "begins with /"],
    );
    assert_names(
        &refusal("[rollout]\nprobe = \"/a b\""),
        &["`rollout.probe`"],
    );
    assert_names(
        &refusal("[rollout]\nmax_error_rate = \"101%\""),
        &["`rollout.max_error_rate`"],
    );
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    assert_names(
        &refusal("[scale]\nisolation = \"instance\"\nconcurrency = 65"),
        &["line 6", "`scale.concurrency` = 65", "1 to 64"],
    );
    assert_names(
        &refusal("[scale]\nisolation = \"instance\"\nconcurrency = 0"),
        &["`scale.concurrency` = 0", "1 to 64"],
    );
    assert_names(
        &refusal("[scale]\nconcurrency = 2"),
        &["`scale.concurrency` = 2", "limits.concurrency"],
    );
    assert_names(
        &refusal("[scale]\nisolation = \"none\""),
        &["\"request\" or \"instance\""],
    );
    assert_names(
        &refusal("[placement]\nregions = \"eu\""),
        &["`placement.regions`", "a list"],
    );
    assert_names(
        &refusal("[placement]\nregions = [\"\"]"),
        &["`placement.regions`"],
    );
    assert_names(
        &refusal("[placement]\nlabels = [\"disk\"]"),
        &["`placement.labels`", "disk=ssd"],
    );
    let text = Manifest::from_toml("schema = 1\nfunction = 3")
        .unwrap_err()
        .to_string();
    assert_names(&text, &["line 2", "`function`", "[function]"]);
}

#[test]
fn what_is_not_toml_or_too_long_is_refused_with_its_place() {
    assert_names(&refusal("[limits\n"), &["line 4", "not TOML"]);
    assert_names(&refusal("name = \"twice\""), &["line 4"]);
    let long = "#".repeat(70_000);
    assert_eq!(
        Manifest::from_toml(&long),
        Err(ManifestError::TooLarge(70_000))
    );
}

#[test]
fn a_manifest_from_elsewhere_passes_the_same_bounds() {
    let good = with("").unwrap();
    assert_eq!(good.check(), Ok(()));
    let mut bad = good.clone();
    bad.limits.memory_bytes = (64 << 20) + 1;
    assert_names(
        &bad.check().unwrap_err().to_string(),
        &["`limits.memory`", "a multiple of"],
    );
    let mut bad = good.clone();
    bad.limits.deadline_ms = u64::MAX;
    assert_names(
        &bad.check().unwrap_err().to_string(),
        &["`limits.deadline`"],
    );
    let mut bad = good.clone();
    bad.env.insert("PORT".into(), "1".into());
    assert_names(&bad.check().unwrap_err().to_string(), &["`env.PORT`"]);
    let mut bad = good;
    bad.schema = 7;
    assert_names(&bad.check().unwrap_err().to_string(), &["`schema` = 7"]);
}

#[test]
fn a_manifest_comes_back_from_its_json() {
    let manifest = with("[env]\nA = \"1\"\n[placement]\nregions = [\"eu\"]").unwrap();
    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}") {
        let _ = Manifest::from_toml(&text);
        let _ = with(&text);
    }

    #[test]
    fn no_value_of_a_known_key_makes_the_reader_panic(
        key in "[a-z_]{1,14}",
        value in "[-0-9a-zA-Z\".%\\[\\], ]{0,20}",
    ) {
        for (section, _) in [("limits", 0), ("rollout", 1), ("scale", 2), ("env", 3)] {
            let _ = with(&format!("[{section}]\n{key} = {value}"));
        }
    }
}

#[test]
fn files_from_outside_of_the_project_or_for_the_guests_own_places_are_refused() {
    for (line, parts) in [
        (
            "\"www\" = \"public\"",
            &["line 5", "`files.www`", "absolute path"][..],
        ),
        (
            "\"/www/\" = \"public\"",
            &["`files./www/`", "absolute path"],
        ),
        ("\"/www/../x\" = \"public\"", &["without `.`, `..`"]),
        ("\"/tmp/x\" = \"x\"", &["`files./tmp/x`", "the guest's own"]),
        ("\"/dev\" = \"x\"", &["the guest's own"]),
        (
            "\"/www\" = \"/srv/www\"",
            &["\"/srv/www\"", "relative to holm.toml"],
        ),
        ("\"/www\" = \"../www\"", &["\"../www\"", "without `..`"]),
        ("\"/www\" = \"a/../../www\"", &["without `..`"]),
        ("\"/www\" = \"\"", &["relative to holm.toml"]),
        ("\"/www\" = 7", &["`files./www`", "text in quotes"]),
        (
            "\"/www\" = \"a\"\n\"/www/img\" = \"b\"",
            &["line 6", "`/www` of another line"],
        ),
        (
            "\"/\" = \"a\"\n\"/etc/x\" = \"b\"",
            &["`/` of another line"],
        ),
    ] {
        assert_names(&refusal(&format!("[files]\n{line}")), parts);
    }
    let good = with("[files]\n\"/www\" = \"a\"\n\"/www-old\" = \"b\"").unwrap();
    assert_eq!(good.files.len(), 2, "names that begin alike do not overlap");
    let many: String = (0..200).map(|n| format!("\"/{n}\" = \"x\"\n")).collect();
    assert_names(
        &refusal(&format!("[files]\n{many}")),
        &["200 lines", "at most 128"],
    );
}

#[test]
fn arguments_begin_with_the_programs_name_and_a_program_for_inetd_keeps_no_state() {
    let function = |rest: &str| {
        Manifest::from_toml(&format!("{LEAST}{rest}")).map_err(|error| error.to_string())
    };
    let manifest = function("args = [\"httpd\", \"-i\"]\ninetd = true").unwrap();
    assert_eq!(manifest.function.args, ["httpd", "-i"]);
    assert!(manifest.function.inetd);
    let instance = "inetd = true\n[scale]\nisolation = \"instance\"";
    assert_names(
        &function(instance).unwrap_err(),
        &["line 6", "`scale.isolation`", "ends with its request"],
    );
    assert_names(
        &function("inetd = \"yes\"").unwrap_err(),
        &["true or false"],
    );
    assert_names(
        &function("args = \"httpd\"").unwrap_err(),
        &["list of texts"],
    );
    assert_names(
        &function("args = [\"\"]").unwrap_err(),
        &["the program's name"],
    );
    assert_names(
        &function("args = [\"a\", \"\\u0000\"]").unwrap_err(),
        &["NUL"],
    );
}

#[test]
fn a_manifest_without_files_and_arguments_is_written_as_before_there_were_any() {
    let json = serde_json::to_string(&with("").unwrap()).unwrap();
    for key in ["files", "args", "inetd"] {
        assert!(!json.contains(key), "{json}");
    }
    let manifest = with("args = [\"a\"]\n[files]\n\"/a\" = \"b\"").unwrap();
    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
}

#[test]
fn a_function_runs_where_region_and_all_labels_fit() {
    let placement = |text: &str| with(&format!("[placement]\n{text}")).unwrap().placement;
    let labels = |of: &[(&str, &str)]| {
        let owned = of
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        owned.collect::<BTreeMap<_, _>>()
    };
    let ssd = labels(&[("disk", "ssd"), ("rack", "7")]);
    assert!(placement("").allows("eu", &labels(&[])));
    let eu = placement("regions = [\"eu\"]\nlabels = [\"disk=ssd\"]");
    assert!(eu.allows("eu", &ssd));
    assert!(!eu.allows("us", &ssd), "the region");
    assert!(!eu.allows("eu", &labels(&[("disk", "hdd")])), "the value");
    assert!(!eu.allows("eu", &labels(&[("rack", "7")])), "the key");
    let both = placement("labels = [\"disk=ssd\", \"rack=8\"]");
    assert!(!both.allows("eu", &ssd), "one of two");
}
