//! Which function a request is for: by path `/{tenant}/{function}/…`, or by host name
//! `{function}.{tenant}.{domain}`. Pure text; whether the function exists is another question.

/// The paths that the node answers itself, on every host name.
const HEALTH_PATH: &str = "/.holm/health";
const METRICS_PATH: &str = "/.holm/metrics";

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// The node itself, about its health.
    Health,
    /// The node itself, about its metrics.
    Metrics,
    /// A function.
    Function {
        tenant: &'a str,
        function: &'a str,
        /// What the function sees: path and query, beginning with `/`.
        rest: String,
    },
    /// Nowhere.
    Nowhere,
}

/// Matches a request's path and query and, if the node has a `domain`, its host.
pub(crate) fn target<'a>(
    path_and_query: &'a str,
    host: Option<&'a str>,
    domain: Option<&str>,
) -> Target<'a> {
    let path_end = path_and_query.find('?').unwrap_or(path_and_query.len());
    match &path_and_query[..path_end] {
        HEALTH_PATH => return Target::Health,
        METRICS_PATH => return Target::Metrics,
        _ => {}
    }
    if !path_and_query.starts_with('/') {
        // `OPTIONS *` and the like.
        return Target::Nowhere;
    }
    if let (Some(host), Some(domain)) = (host, domain)
        && let Some(labels) = below(host, domain)
    {
        // A name below the domain is a function's or nobody's; its path is the function's own.
        return match labels.split_once('.') {
            Some((function, tenant)) if is_label(function) && is_label(tenant) => {
                Target::Function {
                    tenant,
                    function,
                    rest: path_and_query.to_owned(),
                }
            }
            _ => Target::Nowhere,
        };
    }
    let Some((tenant, after)) = path_and_query[1..path_end].split_once('/') else {
        return Target::Nowhere;
    };
    let function = after.split('/').next().unwrap_or_default();
    if !is_label(tenant) || !is_label(function) {
        return Target::Nowhere;
    }
    let rest = &path_and_query[1 + tenant.len() + 1 + function.len()..];
    let rest = match rest.starts_with('/') {
        true => rest.to_owned(),
        false => format!("/{rest}"),
    };
    Target::Function {
        tenant,
        function,
        rest,
    }
}

/// What stands in `host` before `.domain`. Case and the port do not matter.
fn below<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let (labels, found) = name.split_at_checked(name.len().checked_sub(domain.len())?)?;
    let labels = labels.strip_suffix('.')?;
    found.eq_ignore_ascii_case(domain).then_some(labels)
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn function<'a>(tenant: &'a str, function: &'a str, rest: &str) -> Target<'a> {
        Target::Function {
            tenant,
            function,
            rest: rest.into(),
        }
    }

    #[test]
    fn by_path_the_function_sees_what_follows_its_name() {
        for (path, rest) in [
            ("/acme/hello", "/"),
            ("/acme/hello/", "/"),
            ("/acme/hello?x=1", "/?x=1"),
            ("/acme/hello/a/b?x=/y/", "/a/b?x=/y/"),
            ("/acme/hello//a", "//a"),
            ("/acme/hello/%2e%2e/", "/%2e%2e/"),
        ] {
            assert_eq!(
                target(path, None, None),
                function("acme", "hello", rest),
                "{path}"
            );
        }
    }

    #[test]
    fn by_host_the_function_sees_the_whole_path() {
        let domain = Some("fn.example.org");
        for host in [
            "hello.acme.fn.example.org",
            "hello.acme.fn.example.org:8080",
            "hello.acme.FN.example.ORG.",
        ] {
            let found = target("/a/b?c", Some(host), domain);
            assert_eq!(found, function("acme", "hello", "/a/b?c"), "{host}");
        }
    }

    #[test]
    fn other_hosts_are_matched_by_path() {
        let domain = Some("fn.example.org");
        for host in [
            "127.0.0.1:8080",
            "example.org",
            "xfn.example.org",
            "fn.example.org",
            "[::1]:80",
        ] {
            let found = target("/acme/hello/x", Some(host), domain);
            assert_eq!(found, function("acme", "hello", "/x"), "{host}");
        }
    }

    #[test]
    fn what_names_no_function_goes_nowhere() {
        for path in [
            "/",
            "/acme",
            "/acme/",
            "//hello",
            "/a?b/c",
            "*",
            "/acme/he.llo/",
            "/ä/b",
        ] {
            assert_eq!(target(path, None, None), Target::Nowhere, "{path}");
        }
        let domain = Some("fn.example.org");
        for host in [
            "acme.fn.example.org",
            "a.b.c.fn.example.org",
            ".fn.example.org",
        ] {
            assert_eq!(
                target("/acme/hello/", Some(host), domain),
                Target::Nowhere,
                "{host}"
            );
        }
    }

    #[test]
    fn the_nodes_own_paths_are_its_own_on_every_host() {
        assert_eq!(target("/.holm/health", None, None), Target::Health);
        let domain = Some("fn.example.org");
        let host = Some("hello.acme.fn.example.org");
        assert_eq!(target("/.holm/health?x", host, domain), Target::Health);
        assert_eq!(target("/.holm/metrics", host, domain), Target::Metrics);
        assert_eq!(target("/.holm/healthy", None, None), Target::Nowhere);
    }

    proptest! {
        #[test]
        fn any_text_is_matched_without_a_panic(path in ".*", host in ".*", domain in ".*") {
            if let Target::Function { rest, .. } = target(&path, Some(&host), Some(&domain)) {
                prop_assert!(rest.starts_with('/'));
            }
        }
    }
}
