use proptest::prelude::*;

use super::*;
use crate::ids::{Digest, RequestId};

fn record() -> UsageRecord {
    UsageRecord {
        boot_epoch: 1,
        sequence: 1,
        request: RequestId([1; 16]),
        function: "acme/hello".parse().unwrap(),
        version: Digest([7; 32]),
        accepted_ms: 0,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 5_000_000_000,
        restore_ns: 7_000_000_000,
        run_ns: 1_000_001,
        cpu_ns: 900_000,
        memory_bytes: 64 << 20,
        request_bytes: 10,
        response_bytes: 20,
        egress_bytes: 30,
        ingress_bytes: 40,
        cold: true,
        exits: 1,
        probe: false,
    }
}

fn prices(text: [&str; 4]) -> Prices {
    let [million_requests, million_gib_ms, million_cpu_ms, gib_egress] =
        text.map(|text| text.parse().unwrap());
    Prices {
        million_requests,
        million_gib_ms,
        million_cpu_ms,
        gib_egress,
    }
}

#[test]
fn a_begun_millisecond_is_a_whole_one_and_neither_queue_nor_restore_is_billed() {
    let expected = Units {
        requests: 1,
        memory_kib_ms: 2 * (64 << 10),
        cpu_ns: 900_000,
        egress_bytes: 50,
    };
    assert_eq!(Units::of(&record()), expected);
}

#[test]
fn what_never_ran_costs_nothing_whatever_became_of_it() {
    for outcome in Outcome::ALL {
        let unrun = UsageRecord {
            outcome,
            run_ns: 0,
            ..record()
        };
        assert_eq!(Units::of(&unrun), Units::default(), "{outcome:?}");
    }
}

#[test]
fn probes_what_was_refused_and_the_platforms_faults_cost_nothing_and_all_else_does() {
    for outcome in Outcome::ALL {
        let billed = Units::of(&UsageRecord {
            outcome,
            ..record()
        });
        let free = [Outcome::Shed, Outcome::PlatformFault].contains(&outcome);
        assert_eq!(billed == Units::default(), free, "{outcome:?}");
    }
    let probe = UsageRecord {
        probe: true,
        ..record()
    };
    assert_eq!(Units::of(&probe), Units::default());
}

#[test]
fn a_million_of_each_costs_its_price() {
    let units = Units {
        requests: 1_000_000,
        memory_kib_ms: (1 << 20) * 1_000_000,
        cpu_ns: 1_000_000 * 1_000_000,
        egress_bytes: 1 << 30,
    };
    let prices = prices(["0.20", "0.016666667", "0.02", "0.09"]);
    let cost = prices.cost(&units);
    assert_eq!(
        [cost.requests, cost.memory, cost.cpu, cost.egress],
        [
            prices.million_requests,
            prices.million_gib_ms,
            prices.million_cpu_ms,
            prices.gib_egress
        ]
    );
    assert_eq!(cost.total.to_string(), "0.326666667");
}

#[test]
fn half_a_billionth_is_a_whole_one_and_less_is_none() {
    let cost = |requests| {
        let units = Units {
            requests,
            ..Units::default()
        };
        prices(["0.000000001", "0", "0", "0"]).cost(&units).total.0
    };
    assert_eq!([cost(499_999), cost(500_000), cost(1_500_000)], [0, 1, 2]);
}

#[test]
fn what_does_not_fit_is_held_at_the_end() {
    let most = Units {
        requests: u64::MAX,
        memory_kib_ms: u64::MAX,
        cpu_ns: u64::MAX,
        egress_bytes: u64::MAX,
    };
    assert_eq!(most.plus(most), most);
    let dear = Amount(u64::MAX);
    let prices = Prices {
        million_requests: dear,
        million_gib_ms: dear,
        million_cpu_ms: dear,
        gib_egress: dear,
    };
    assert_eq!(prices.cost(&most).total, dear);
}

#[test]
fn amounts_are_written_and_read_as_decimal_numbers() {
    for (text, nanos, again) in [
        ("0", 0, "0.00"),
        ("1", 1_000_000_000, "1.00"),
        ("0.2", 200_000_000, "0.20"),
        ("0.000000001", 1, "0.000000001"),
        ("18446744073.709551615", u64::MAX, "18446744073.709551615"),
    ] {
        let amount: Amount = text.parse().unwrap();
        assert_eq!((amount.0, amount.to_string().as_str()), (nanos, again));
    }
    for bad in [
        "",
        ".",
        "1.",
        ".5",
        "-1",
        "+1",
        "1e3",
        "0.0000000001",
        "1,5",
        "18446744073.709551616",
        "٣",
    ] {
        assert!(bad.parse::<Amount>().is_err(), "{bad}");
    }
}

#[test]
fn a_currency_is_three_capital_letters() {
    assert_eq!("EUR".parse::<Currency>().unwrap().to_string(), "EUR");
    for bad in ["", "eur", "EURO", "E R", "ÄB"] {
        assert!(bad.parse::<Currency>().is_err(), "{bad}");
    }
}

fn plan(name: &str, version: u64, from_ms: u64) -> PricePlan {
    PricePlan {
        name: name.parse().unwrap(),
        version,
        from_ms,
        currency: "EUR".parse().unwrap(),
        prices: Prices::default(),
        created_ms: 0,
    }
}

#[test]
fn a_time_is_cut_where_a_tenants_prices_change_and_nowhere_else() {
    let plans = [
        plan("standard", 1, 10),
        plan("standard", 2, 40),
        plan("large", 1, 0),
        plan("large", 2, 70),
        plan("other", 1, 55),
    ];
    let assign = |tenant: &str, plan: &str, from_ms| PlanAssignment {
        tenant: tenant.parse().unwrap(),
        plan: plan.parse().unwrap(),
        from_ms,
    };
    let assignments = [
        assign("acme", "large", 50),
        assign("acme", "large", 60),
        assign("b", "other", 20),
    ];
    let cut = |tenant: &str, from, to| {
        let cut = periods(&tenant.parse().unwrap(), &plans, &assignments, from, to);
        let told = cut.iter().map(|period| {
            let plan = period
                .plan
                .map(|plan| format!("{}/{}", plan.name, plan.version));
            (period.from_ms, period.to_ms, plan.unwrap_or_default())
        });
        told.collect::<Vec<_>>()
    };
    let expected = [
        (0, 10, ""),
        (10, 40, "standard/1"),
        (40, 50, "standard/2"),
        (50, 70, "large/1"),
        (70, 100, "large/2"),
    ];
    assert_eq!(
        cut("acme", 0, 100),
        expected.map(|(from, to, plan)| (from, to, plan.to_owned()))
    );
    // A plan of which no version is in force yet is no price.
    let expected = [(20, 55, ""), (55, 60, "other/1")];
    assert_eq!(
        cut("b", 20, 60),
        expected.map(|(from, to, plan)| (from, to, plan.to_owned()))
    );
    assert_eq!(cut("acme", 40, 40), []);
}

proptest! {
    #[test]
    fn units_add_up_however_usage_is_cut(runs in prop::collection::vec((0u64..10_000_000_000, 1u64..1 << 32, 0u64..1 << 30), 0..40), cut in 0usize..40) {
        let records: Vec<_> = runs.iter().map(|(run_ns, memory_bytes, bytes)| UsageRecord {
            run_ns: *run_ns, memory_bytes: *memory_bytes, response_bytes: *bytes, ..record()
        }).collect();
        let sum = |records: &[UsageRecord]| records.iter().map(Units::of).fold(Units::default(), Units::plus);
        let (one, other) = records.split_at(cut.min(records.len()));
        prop_assert_eq!(sum(one).plus(sum(other)), sum(&records));
    }

    #[test]
    fn an_amount_is_read_as_it_was_written(nanos: u64) {
        let amount = Amount(nanos);
        prop_assert_eq!(amount.to_string().parse::<Amount>().unwrap(), amount);
    }

    #[test]
    fn periods_cover_the_time_without_gap_or_overlap(
        versions in prop::collection::vec((0usize..3, 0u64..100), 0..8),
        given in prop::collection::vec((0usize..3, 0u64..100), 0..8),
        from in 0u64..100, length in 1u64..100,
    ) {
        const NAMES: [&str; 3] = ["standard", "a", "b"];
        let plans: Vec<_> = versions.iter().zip(1..).map(|((name, from), version)| plan(NAMES[*name], version, *from)).collect();
        let given: Vec<_> = given.iter().map(|(plan, from_ms)| PlanAssignment {
            tenant: "acme".parse().unwrap(), plan: NAMES[*plan].parse().unwrap(), from_ms: *from_ms,
        }).collect();
        let cut = periods(&"acme".parse().unwrap(), &plans, &given, from, from + length);
        prop_assert_eq!(cut.first().unwrap().from_ms, from);
        prop_assert_eq!(cut.last().unwrap().to_ms, from + length);
        for pair in cut.windows(2) {
            prop_assert_eq!(pair[0].to_ms, pair[1].from_ms);
            prop_assert!(pair[0].plan != pair[1].plan);
        }
        for period in &cut {
            prop_assert!(period.from_ms < period.to_ms);
            prop_assert!(period.plan.is_none_or(|plan| plan.from_ms <= period.from_ms));
        }
    }
}
