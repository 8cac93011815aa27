//! The nearest node: who can serve a caller best, and why. A pure function over what is known.
//!
//! Only a connected node on which a version of the function takes requests is a candidate. The
//! caller's own measurements come first, distance next, the name last.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use holm_model::api::{RouteCandidate, RouteExcluded, RouteView};
use holm_model::control::VersionState;
use holm_model::ids::{FunctionName, Name};
use holm_model::place::Coordinates;

/// A node as routing sees it.
#[derive(Clone, Debug)]
pub(crate) struct RouteNode {
    pub(crate) name: Name,
    pub(crate) region: String,
    pub(crate) coordinates: Coordinates,
    pub(crate) ingress_url: String,
    pub(crate) connected: bool,
    /// An operator says that it takes no requests.
    pub(crate) drained: bool,
    /// An operator says that it gets nothing new.
    pub(crate) cordoned: bool,
    /// It takes none because it is about to stop.
    pub(crate) stopping: bool,
    /// The function's versions on it, and whether they take requests.
    pub(crate) versions: Vec<(VersionState, bool)>,
}

/// What the caller says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    pub(crate) from: Option<Coordinates>,
    /// Round-trip times that it has measured, in microseconds.
    pub(crate) rtt_us: BTreeMap<Name, u64>,
}

/// Ranks `nodes` for a caller of `function`.
pub(crate) fn nearest(
    function: &FunctionName,
    nodes: impl IntoIterator<Item = RouteNode>,
    caller: &Caller,
) -> RouteView {
    let mut candidates = Vec::new();
    let mut excluded = Vec::new();
    for node in nodes {
        match unfit(&node) {
            Some(why) => excluded.push(RouteExcluded {
                node: node.name,
                why,
            }),
            None => candidates.push(candidate(function, node, caller)),
        }
    }
    candidates.sort_by(better);
    RouteView {
        candidates,
        excluded,
    }
}

/// Why a node cannot serve.
fn unfit(node: &RouteNode) -> Option<String> {
    if !node.connected {
        return Some("its link to the coordinator is down".into());
    }
    if node.drained {
        return Some("it is drained; `holm nodes undrain` lets it take requests".into());
    }
    if node.cordoned {
        return Some("it is cordoned; `holm nodes uncordon` lets it be chosen again".into());
    }
    if node.stopping {
        return Some("it is stopping".into());
    }
    if node
        .versions
        .iter()
        .any(|(state, routed)| *routed && *state == VersionState::Ready)
    {
        return None;
    }
    let why = match node.versions.first() {
        None => "it does not have the function".into(),
        Some(_) => {
            let failed = node.versions.iter().find_map(|(state, _)| match state {
                VersionState::Failed { reason } => Some(reason),
                _ => None,
            });
            match failed {
                Some(reason) => format!("the function's version failed there: {reason}"),
                None => "it is still preparing the function".into(),
            }
        }
    };
    Some(why)
}

fn candidate(function: &FunctionName, node: RouteNode, caller: &Caller) -> RouteCandidate {
    let distance_km = caller.from.map(|from| from.distance_km(node.coordinates));
    let rtt_us = caller.rtt_us.get(&node.name).copied();
    let far = distance_km.map(|km| format!("{km:.0} km away"));
    let measured =
        rtt_us.map(|us| format!("{}.{:03} ms measured by the caller", us / 1000, us % 1000));
    let why = match (measured, far) {
        (Some(measured), Some(far)) => format!("{measured}; {far}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => "the caller said neither where it is nor what it measured".into(),
    };
    RouteCandidate {
        url: format!("{}/{function}", node.ingress_url.trim_end_matches('/')),
        node: node.name,
        region: node.region,
        distance_km,
        rtt_us,
        why: format!("connected and ready; {why}"),
    }
}

fn better(a: &RouteCandidate, b: &RouteCandidate) -> Ordering {
    let distance = |c: &RouteCandidate| c.distance_km.unwrap_or(f64::INFINITY);
    let measured = |c: &RouteCandidate| c.rtt_us.unwrap_or(u64::MAX);
    measured(a)
        .cmp(&measured(b))
        .then_with(|| distance(a).total_cmp(&distance(b)))
        .then_with(|| a.node.cmp(&b.node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, coordinates: &str) -> RouteNode {
        RouteNode {
            name: name.parse().unwrap(),
            region: "eu".into(),
            coordinates: coordinates.parse().unwrap(),
            ingress_url: format!("http://{name}:8080/"),
            connected: true,
            drained: false,
            cordoned: false,
            stopping: false,
            versions: vec![(VersionState::Ready, true)],
        }
    }

    fn fleet() -> Vec<RouteNode> {
        vec![
            node("sydney", "-33.87,151.21"),
            node("frankfurt", "50.11,8.68"),
            node("virginia", "38.95,-77.45"),
        ]
    }

    fn route(nodes: Vec<RouteNode>, caller: &Caller) -> RouteView {
        nearest(&"acme/hello".parse().unwrap(), nodes, caller)
    }

    fn order(view: &RouteView) -> Vec<&str> {
        view.candidates
            .iter()
            .map(|candidate| candidate.node.as_str())
            .collect()
    }

    #[test]
    fn a_node_that_is_drained_or_stops_is_left_out() {
        let mut nodes = fleet();
        nodes[0].drained = true;
        nodes[1].stopping = true;
        let view = route(nodes, &Caller::default());
        assert_eq!(order(&view), ["virginia"]);
        let why: Vec<_> = view.excluded.iter().map(|one| one.why.as_str()).collect();
        assert!(
            why[0].contains("drained") && why[1].contains("stopping"),
            "{why:?}"
        );
    }

    #[test]
    fn without_measurements_the_nearest_by_distance_comes_first() {
        for (from, expected) in [
            ("52.52,13.40", ["frankfurt", "virginia", "sydney"]),
            ("40.71,-74.00", ["virginia", "frankfurt", "sydney"]),
            ("-36.85,174.76", ["sydney", "virginia", "frankfurt"]),
        ] {
            let caller = Caller {
                from: Some(from.parse().unwrap()),
                ..Caller::default()
            };
            assert_eq!(order(&route(fleet(), &caller)), expected, "from {from}");
        }
    }

    #[test]
    fn what_the_caller_measured_beats_distance() {
        let rtt_us = BTreeMap::from([
            ("sydney".parse().unwrap(), 12_345),
            ("virginia".parse().unwrap(), 80_000),
        ]);
        let caller = Caller {
            from: Some("52.52,13.40".parse().unwrap()),
            rtt_us,
        };
        let view = route(fleet(), &caller);
        assert_eq!(order(&view), ["sydney", "virginia", "frankfurt"]);
        assert!(
            view.candidates[0]
                .why
                .contains("12.345 ms measured by the caller; 16")
        );
    }

    #[test]
    fn the_url_is_that_of_the_function_on_the_node() {
        let view = route(vec![node("a", "0,0")], &Caller::default());
        assert_eq!(view.candidates[0].url, "http://a:8080/acme/hello");
        assert!(view.candidates[0].why.contains("neither where it is"));
    }

    #[test]
    fn who_cannot_serve_is_left_out_and_told_why() {
        let mut gone = node("gone", "0,0");
        gone.connected = false;
        let mut without = node("without", "0,0");
        without.versions.clear();
        let mut preparing = node("preparing", "0,0");
        preparing.versions = vec![(VersionState::Preparing, false)];
        let mut failed = node("failed", "0,0");
        let reason = "probe answered 500".to_owned();
        failed.versions = vec![(VersionState::Failed { reason }, false)];
        // Ready, but requests do not go there yet.
        let mut unrouted = node("unrouted", "0,0");
        unrouted.versions = vec![(VersionState::Ready, false)];
        let mut falling_back = node("falling-back", "0,0");
        falling_back
            .versions
            .insert(0, (VersionState::Preparing, false));

        let nodes = vec![gone, without, preparing, failed, unrouted, falling_back];
        let view = route(nodes, &Caller::default());
        assert_eq!(order(&view), ["falling-back"]);
        let why: Vec<_> = view
            .excluded
            .iter()
            .map(|excluded| excluded.why.as_str())
            .collect();
        assert_eq!(
            why,
            [
                "its link to the coordinator is down",
                "it does not have the function",
                "it is still preparing the function",
                "the function's version failed there: probe answered 500",
                "it is still preparing the function",
            ]
        );
    }
}
