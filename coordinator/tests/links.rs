//! The control link under peers that do not behave, and under peers that vanish.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::node::{
    self, TestNode, bulk, bulk_for, connect, dial, dial_offering, hello, join, join_as, offered_by,
    read, read_for, signing_request, write,
};
use common::{Coordinator, PATIENCE, Publisher, until};
use holm_model::api::RolloutState;
use holm_model::chunks::Index;
use holm_model::codec;
use holm_model::control::{
    ALPN, BulkAnswer, BulkRequest, CoordinatorMessage, LogBatch, LogEntry, NodeMessage, Observed,
    PROTOCOL_VERSION, Report,
};
use holm_model::ids::{Digest, RequestId};
use holm_model::join::JoinToken;
use holm_model::limits::{MAX_CONTROL_FRAME_BYTES, MAX_LOG_BATCH_BYTES, MAX_LOG_ENTRY_BYTES};
use holm_model::protocol::{Purpose, Version};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, RecvStream, SendStream};
use rcgen::KeyPair;
use tokio::time::timeout;

async fn identity(coordinator: &Coordinator, name: &str) -> node::Identity {
    join(coordinator.quic, &coordinator.join_token().await, name)
        .await
        .unwrap()
}

/// The reason that comes over the control stream, after which the connection closes with it too.
async fn refusal(connection: &Connection, recv: &mut RecvStream) -> String {
    let reason = loop {
        match read(recv).await {
            Some(CoordinatorMessage::Refuse { reason }) => break reason,
            Some(_) => {}
            None => panic!(
                "the stream ended without a reason: {:?}",
                connection.close_reason()
            ),
        }
    };
    let closed = timeout(PATIENCE, connection.closed())
        .await
        .unwrap()
        .to_string();
    let start: String = reason.chars().take(40).collect();
    assert!(closed.contains(&start), "{closed} is not about {reason}");
    reason
}

async fn open(coordinator: &Coordinator, name: &str) -> (Connection, SendStream, RecvStream) {
    let identity = identity(coordinator, name).await;
    let connection = dial(coordinator.quic, ALPN, Some(&identity)).await;
    let (send, recv) = connection.open_bi().await.unwrap();
    (connection, send, recv)
}

/// What is sent first, and what the refusal says.
async fn refused_for(first: &[u8], says: &str) {
    let coordinator = Coordinator::start().await;
    let bystander = TestNode::start(&coordinator, "bystander", 1).await;
    let (connection, mut send, mut recv) = open(&coordinator, "bad").await;
    send.write_all(first).await.unwrap();
    send.finish().unwrap();
    let reason = refusal(&connection, &mut recv).await;
    assert!(reason.contains(says), "{reason}");
    let mut nodes = coordinator.nodes().await;
    nodes.retain(|node| !node.never_connected);
    assert_eq!(nodes.len(), 1, "who was refused is no part of the fleet");
    assert!(nodes[0].connected && nodes[0].name == bystander.identity.name);
}

#[tokio::test]
async fn a_frame_that_announces_too_much_is_refused_before_it_is_sent() {
    let length = u32::try_from(MAX_CONTROL_FRAME_BYTES + 1).unwrap();
    refused_for(&length.to_le_bytes(), "more than the 4194304 allowed").await;
}

#[tokio::test]
async fn a_frame_cut_short_is_refused() {
    let whole = codec::encode(&NodeMessage::Hello(hello(1))).unwrap();
    let says = format!("after 9 of {} bytes", whole.len() - 4);
    refused_for(&whole[..13], &says).await;
    refused_for(&whole[..2], "after 2 of 4 bytes").await;
}

#[tokio::test]
async fn a_peer_of_another_protocol_version_is_told_both_versions() {
    let mut frame = codec::encode(&NodeMessage::Hello(hello(1))).unwrap();
    frame[4..6].copy_from_slice(&9u16.to_le_bytes());
    let says = format!("the peer speaks protocol version 9, this side {PROTOCOL_VERSION}");
    refused_for(&frame, &says).await;
}

fn names(of: &[&str]) -> Vec<Vec<u8>> {
    of.iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// The ALPN name that TLS has agreed on.
fn agreed_name(connection: &Connection) -> String {
    let data = connection.handshake_data().unwrap();
    let data = data.downcast::<HandshakeData>().unwrap();
    String::from_utf8(data.protocol.unwrap()).unwrap()
}

#[tokio::test]
async fn two_versions_apart_both_are_told_so() {
    let coordinator = Coordinator::start().await;
    let identity = identity(&coordinator, "newer").await;
    let offered = names(&["holm/8", "holm/7", "holm/1"]);
    let connection = dial_offering(coordinator.quic, offered, Some(&identity)).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let mut frame = codec::encode(&NodeMessage::Hello(hello(1))).unwrap();
    frame[4] = 8;
    send.write_all(&frame).await.unwrap();
    // In the oldest version that is spoken here, since none is agreed on.
    match read_for(&mut recv, Version::BEFORE).await {
        Some(CoordinatorMessage::Refuse { reason }) => {
            assert!(reason.contains("version 8, this side 6"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(
        closed.to_string().contains("protocol version 8"),
        "{closed}"
    );
}

/// As a node of that version has sent it.
const HELLO_OF_VERSION_5: &str = "39000000050000fc80c84206fc8f1699010a65752d63656e7472616c\
                                  15687474703a2f2f3132372e302e302e313a38303830030370766d05302e312e30";

#[tokio::test]
async fn a_node_of_the_version_before_joins_and_takes_part_in_a_rollout_beside_one_of_this() {
    let coordinator = Coordinator::start().await;
    let (old, new) = (Version::BEFORE, Version::NOW);
    let mut nodes = Vec::new();
    for (name, index, version) in [("old", 1, old), ("new", 2, new)] {
        let token: JoinToken = coordinator.join_token().await.parse().unwrap();
        let joined = join_as(version, coordinator.quic, token.secret, name).await;
        let (identity, addresses) = (joined.unwrap(), vec![coordinator.quic]);
        nodes.push(TestNode::run_as(version, addresses, identity, hello(index)));
    }
    let both = || async { coordinator.connected().await == 2 };
    until("a link of both", both).await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    for _ in 0..2 {
        let version = publisher.publish(&coordinator, "").await.version;
        let rollout = publisher
            .roll_out(&coordinator, version, &[50, 100], 100)
            .await;
        let view = coordinator
            .rollout_when(rollout.id, |view| view.ended_ms.is_some())
            .await;
        assert_eq!(view.state, RolloutState::Completed, "{}", view.reason);
        let on_both = || async { nodes.iter().all(|node| node.routed() == Some(version)) };
        until("the version on both", on_both).await;
    }
    assert!(
        coordinator
            .nodes()
            .await
            .iter()
            .all(|node| node.connected && node.refused_messages == 0)
    );
}

#[tokio::test]
async fn bulk_streams_of_a_link_speak_the_version_that_it_has_agreed_on() {
    let coordinator = Coordinator::start().await;
    let artifact: Vec<u8> = (0..30_000u32).flat_map(u32::to_le_bytes).collect();
    common::put_artifact(&coordinator.client, &artifact).await;
    let digest = Digest::of(&artifact);
    let identity = identity(&coordinator, "old").await;
    let version = Version::BEFORE;
    let offered = offered_by(version, Purpose::Link);
    let connection = dial_offering(coordinator.quic, offered, Some(&identity)).await;
    assert_eq!(agreed_name(&connection), "holm/1");
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let hello = hex::decode(HELLO_OF_VERSION_5).unwrap();
    send.write_all(&hello).await.unwrap();
    match read_for(&mut recv, version).await {
        Some(CoordinatorMessage::Welcome { node, .. }) => assert_eq!(node, identity.name),
        other => panic!("{other:?} is not Welcome"),
    }
    let request = BulkRequest::FetchIndex { digest };
    let (answer, index) = bulk_for(&connection, &request, version).await;
    assert!(matches!(answer, BulkAnswer::Bytes { .. }), "{answer:?}");
    assert_eq!(index, Index::of(&artifact).to_bytes());
    // A frame of the other version is none that was agreed on.
    write(&mut send, &NodeMessage::Report(Report::default())).await;
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(
        closed.to_string().contains("after 5 was agreed on"),
        "{closed}"
    );
}

#[tokio::test]
async fn what_a_newer_node_says_that_is_not_known_is_refused_and_its_link_goes_on() {
    let coordinator = Coordinator::start().await;
    let identity = identity(&coordinator, "newer").await;
    let offered = names(&["holm/7", "holm/6", "holm/1"]);
    let connection = dial_offering(coordinator.quic, offered, Some(&identity)).await;
    assert_eq!(agreed_name(&connection), "holm/6");
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write(&mut send, &NodeMessage::Hello(hello(1))).await;
    assert!(matches!(
        read(&mut recv).await,
        Some(CoordinatorMessage::Welcome { .. })
    ));
    let mut unknown = codec::encode(&NodeMessage::Report(Report::default())).unwrap();
    unknown[6] = 99;
    send.write_all(&unknown).await.unwrap();

    let (mut to, mut from) = connection.open_bi().await.unwrap();
    to.write_all(&unknown).await.unwrap();
    match read(&mut from).await {
        Some(BulkAnswer::Refused { reason }) => {
            assert!(
                reason.contains("messages of kind 99; update it"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    // What the node itself did not know is counted with it.
    let report = Report {
        refused: 3,
        ..Report::default()
    };
    write(&mut send, &NodeMessage::Report(report)).await;
    let counted = || async { coordinator.nodes().await[0].refused_messages == 5 };
    until("all five to be counted", counted).await;
    let digest = node::nothing();
    let answer = bulk(&connection, &BulkRequest::FetchIndex { digest })
        .await
        .0;
    assert!(matches!(answer, BulkAnswer::Refused { .. }), "{answer:?}");
    assert!(coordinator.nodes().await[0].connected);
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let mut frame = vec![0xff; 100];
    frame[..4].copy_from_slice(&96u32.to_le_bytes());
    frame[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    refused_for(&frame, "cannot be read").await;
}

#[tokio::test]
async fn whoever_does_not_say_hello_first_is_refused() {
    let report = codec::encode(&NodeMessage::Report(Report::default())).unwrap();
    refused_for(&report, "the node's first message is not Hello").await;
}

#[tokio::test]
async fn a_hello_that_makes_no_sense_is_refused_by_what_is_wrong_with_it() {
    let mut nowhere = hello(1);
    nowhere.coordinates.latitude_microdegrees = 91_000_000;
    let mut unreachable = hello(1);
    unreachable.ingress_url = "file:///etc/passwd".into();
    let mut loud = hello(1);
    loud.region = "eu\x1b[31m".into();
    for (bad, says) in [
        (nowhere, "coordinates that are not on the earth"),
        (unreachable, "an ingress URL that is not http"),
        (loud, "a region that is empty, too long or not printable"),
    ] {
        refused_for(&codec::encode(&NodeMessage::Hello(bad)).unwrap(), says).await;
    }
}

#[tokio::test]
async fn a_breach_in_mid_link_ends_that_link_alone() {
    let coordinator = Coordinator::start().await;
    let bystander = TestNode::start(&coordinator, "bystander", 1).await;
    let identity = identity(&coordinator, "bad").await;
    let mut control = connect(coordinator.quic, &identity, hello(2)).await;
    assert_eq!(
        coordinator
            .nodes()
            .await
            .iter()
            .filter(|view| view.connected)
            .count(),
        2
    );
    write(&mut control.send, &NodeMessage::Hello(hello(2))).await;
    let reason = refusal(&control.connection, &mut control.recv).await;
    assert!(reason.contains("said Hello twice"), "{reason}");
    let gone = || async {
        let nodes = coordinator.nodes().await;
        nodes
            .iter()
            .all(|view| view.connected == (view.name == bystander.identity.name))
    };
    until("the end of one link", gone).await;
}

#[tokio::test]
async fn a_bulk_request_that_cannot_be_read_is_answered_and_ends_the_link() {
    let coordinator = Coordinator::start().await;
    let identity = identity(&coordinator, "bad").await;
    let control = connect(coordinator.quic, &identity, hello(2)).await;
    let (mut send, mut recv) = control.connection.open_bi().await.unwrap();
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    match read(&mut recv).await {
        Some(BulkAnswer::Refused { reason }) => assert!(reason.contains("allowed"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let closed = timeout(PATIENCE, control.connection.closed())
        .await
        .unwrap()
        .to_string();
    assert!(closed.contains("more than the 4194304 allowed"), "{closed}");
}

#[tokio::test]
async fn without_a_certificate_there_is_no_control_link() {
    let coordinator = Coordinator::start().await;
    let connection = dial(coordinator.quic, ALPN, None).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write(&mut send, &NodeMessage::Hello(hello(1))).await;
    let reason = refusal(&connection, &mut recv).await;
    assert!(reason.contains("needs a node's certificate"), "{reason}");
    assert_eq!(coordinator.nodes().await, []);
}

#[tokio::test]
async fn a_certificate_of_another_fleet_is_worth_nothing() {
    let (own, other) = (Coordinator::start().await, Coordinator::start().await);
    let mut stranger = identity(&other, "edge-1").await;
    // It trusts this coordinator, so that only its own certificate is in question.
    stranger.ca = identity(&own, "edge-2").await.ca;
    let connection = dial(own.quic, ALPN, Some(&stranger)).await;
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(closed.to_string().contains("aborted by peer"), "{closed}");
    assert!(own.nodes().await.iter().all(|node| node.never_connected));
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_key_and_neither_is_void_before_its_end() {
    let coordinator = Coordinator::start().await;
    let old = identity(&coordinator, "edge-1").await;
    let control = connect(coordinator.quic, &old, hello(1)).await;
    let key = KeyPair::try_from(old.key.as_slice()).unwrap();
    let renew = async |connection, key: &KeyPair| {
        let csr_der = signing_request(key);
        bulk(connection, &BulkRequest::Renew { csr_der }).await.0
    };
    let other = KeyPair::generate().unwrap();
    match renew(&control.connection, &other).await {
        BulkAnswer::Refused { reason } => assert!(reason.contains("for the same key"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // What nobody can read costs neither the link nor the certificate.
    let csr_der = b"no request".to_vec();
    match bulk(&control.connection, &BulkRequest::Renew { csr_der })
        .await
        .0
    {
        BulkAnswer::Refused { reason } => assert!(reason.contains("PKCS#10"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let BulkAnswer::Renewed { certificate_der } = renew(&control.connection, &key).await else {
        panic!("not renewed");
    };
    let mut new = old.clone();
    new.chain = vec![certificate_der.into()];
    // The answer may have been lost.
    drop(connect(coordinator.quic, &old, hello(1)).await);
    let control = connect(coordinator.quic, &new, hello(1)).await;
    let until = coordinator.nodes().await[0].certificate_until_ms.unwrap();
    let left = Duration::from_millis(until) - SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let days = left.as_secs() / 86_400;
    assert!((29..=30).contains(&days), "{days}");
    match renew(&control.connection, &key).await {
        BulkAnswer::Refused { reason } => assert!(reason.contains("a moment ago"), "{reason}"),
        other => panic!("{other:?}"),
    }
    drop(connect(coordinator.quic, &old, hello(1)).await);
    let recorded = coordinator.client.get("/v1/audit?limit=100").await;
    assert!(
        recorded.text().contains("node.renew"),
        "{}",
        recorded.text()
    );
}

#[tokio::test]
async fn a_node_that_is_killed_is_seen_as_gone_within_about_three_seconds() {
    let coordinator = Coordinator::start().await;
    let identity = identity(&coordinator, "edge-1").await;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let quic = coordinator.quic;
    let control = runtime
        .spawn(async move { connect(quic, &identity, hello(1)).await })
        .await
        .unwrap();
    let view = &coordinator.nodes().await[0];
    assert!(view.connected && view.rtt_us.is_some());

    // Without its runtime the node's socket falls silent, as a killed process's does: nothing
    // closes the connection.
    let killed = Instant::now();
    std::mem::forget(control);
    runtime.shutdown_background();
    until("the end of the link", || async {
        !coordinator.nodes().await[0].connected
    })
    .await;
    let took = killed.elapsed();
    assert!(
        took > Duration::from_millis(500),
        "{took:?}: it was closed, not killed"
    );
    // Three seconds and room for a busy machine.
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(coordinator.nodes().await[0].rtt_us, None);
}

#[tokio::test]
async fn a_newer_connection_of_a_node_takes_over() {
    let coordinator = Coordinator::start().await;
    let identity = identity(&coordinator, "edge-1").await;
    let first = connect(coordinator.quic, &identity, hello(1)).await;
    let mut moved = hello(1);
    moved.ingress_url = "http://elsewhere:1".into();
    let _second = connect(coordinator.quic, &identity, moved).await;
    let closed = timeout(PATIENCE, first.connection.closed())
        .await
        .unwrap()
        .to_string();
    assert!(
        closed.contains("a newer connection of this node took over"),
        "{closed}"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    let nodes = coordinator.nodes().await;
    assert_eq!(nodes.len(), 1);
    assert!(
        nodes[0].connected,
        "the end of the first link is not the end of the second"
    );
    assert_eq!(nodes[0].ingress_url, "http://elsewhere:1");
}

#[tokio::test]
async fn of_an_artifact_come_the_chunks_that_are_asked_for() {
    let coordinator = Coordinator::start().await;
    let artifact: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    common::put_artifact(&coordinator.client, &artifact).await;
    let digest = holm_model::ids::Digest::of(&artifact);
    let identity = identity(&coordinator, "edge-1").await;
    let control = connect(coordinator.quic, &identity, hello(1)).await;
    let index = Index::of(&artifact);
    let expected = index.to_bytes();
    let (answer, bytes) = bulk(&control.connection, &BulkRequest::FetchIndex { digest }).await;
    let length = expected.len() as u64;
    assert_eq!(answer, BulkAnswer::Bytes { bytes: length });
    assert_eq!(bytes, expected);
    let placed: Vec<_> = index.placed().collect();
    let last = placed.len() as u32 - 1;
    for places in [(0..=last).collect(), vec![1, 3, last], vec![]] {
        let chunk = |place: &u32| {
            let (at, chunk) = placed[*place as usize];
            &artifact[at as usize..][..chunk.bytes as usize]
        };
        let expected: Vec<u8> = places.iter().flat_map(chunk).copied().collect();
        let request = BulkRequest::FetchChunks { digest, places };
        let (answer, bytes) = bulk(&control.connection, &request).await;
        let length = expected.len() as u64;
        assert_eq!(answer, BulkAnswer::Bytes { bytes: length });
        assert!(bytes == expected, "{request:?}");
    }
    let of = |digest, places| BulkRequest::FetchChunks { digest, places };
    let nothing = node::nothing();
    for (request, says) in [
        (of(digest, vec![last + 1]), "has only"),
        (of(digest, vec![3, 1]), "do not rise"),
        (of(digest, vec![3, 3]), "do not rise"),
        (of(nothing, vec![0]), "there is no artifact"),
        (
            BulkRequest::FetchIndex { digest: nothing },
            "there is no artifact",
        ),
    ] {
        match bulk(&control.connection, &request).await.0 {
            BulkAnswer::Refused { reason } => assert!(reason.contains(says), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_node_may_not_list_versions_without_end() {
    let coordinator = Coordinator::start().await;
    let mut publisher = Publisher::register(&coordinator, "acme/hello", 1).await;
    let version = publisher.publish(&coordinator, "").await.version;
    let identity = identity(&coordinator, "edge-1").await;
    let mut control = connect(coordinator.quic, &identity, hello(1)).await;
    let seen = holm_model::control::ObservedVersion {
        function: publisher.function.clone(),
        version,
        state: holm_model::control::VersionState::Ready,
        routed: true,
        record: None,
    };
    let observed = Observed {
        generation: 1,
        versions: vec![seen; 5000],
    };
    write(&mut control.send, &NodeMessage::Observed(observed)).await;
    let reason = refusal(&control.connection, &mut control.recv).await;
    assert!(reason.contains("lists 5000 versions"), "{reason}");
}

#[tokio::test]
async fn a_node_may_not_send_logs_without_end() {
    let coordinator = Coordinator::start().await;
    let entry = LogEntry {
        function: "acme/hello".parse().unwrap(),
        version: Digest([1; 32]),
        request: RequestId([1; 16]),
        at_ms: 1,
        failed: false,
        text: String::new(),
    };
    let (count, each) = (MAX_LOG_BATCH_BYTES / 256, MAX_LOG_ENTRY_BYTES / 256);
    let batch = |entries| {
        NodeMessage::Logs(LogBatch {
            entries: vec![entry.clone(); entries],
            dropped: 0,
        })
    };
    let identity = identity(&coordinator, "n").await;
    let mut control = connect(coordinator.quic, &identity, hello(1)).await;
    // One entry more than a batch holds is let pass; what is refused is the next message.
    write(&mut control.send, &batch(count + each + 1)).await;
    write(&mut control.send, &batch(count + each + 2)).await;
    let reason = refusal(&control.connection, &mut control.recv).await;
    let bytes = 256 * (count + each + 2);
    assert!(
        reason.contains(&format!("counts {bytes} bytes")),
        "{reason}"
    );
}
