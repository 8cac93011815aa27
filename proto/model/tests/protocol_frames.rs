//! The bytes of protocol versions 6 and 5, message by message.
//!
//! Nodes and coordinators of different builds speak to each other: if one of these snapshots changes,
//! the wire format has changed. Then raise `control::PROTOCOL_VERSION` and say in `control::before` what the message
//! was (or undo the change); never only accept the new bytes. Those of version 5 were recorded by that version, and go
//! when it is spoken no more.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use holm_model::artifact::{PublisherKey, SignedVersion};
use holm_model::budget::{BudgetList, BudgetTerms, LeaseAnswer, LeaseAsk, LeaseAsks, PriceSpan};
use holm_model::codec::{self, FRAME_HEADER_BYTES, FrameError};
use holm_model::configuration::{Configuration, Secret, SignedConfiguration};
use holm_model::control::*;
use holm_model::ids::{Digest, FunctionName, RequestId};
use holm_model::limits::MAX_CONTROL_FRAME_BYTES;
use holm_model::place::Coordinates;
use holm_model::price::{Amount, Prices};
use holm_model::protocol::{Message, Version};
use holm_model::usage::{Outcome, UsageRecord};
use holm_model::usage_batch::{PackedRecords, UsageBatch};

fn function() -> FunctionName {
    "acme/hello".parse().unwrap()
}

fn signed() -> SignedVersion {
    SignedVersion {
        statement: b"{\"a\":1}".to_vec(),
        key: PublisherKey([0xaa; 32]),
        signature: vec![0xbb; 64],
    }
}

fn record() -> UsageRecord {
    UsageRecord {
        boot_epoch: 3,
        sequence: 300,
        request: RequestId([0x11; 16]),
        function: function(),
        version: Digest([0x22; 32]),
        accepted_ms: 1_700_000_000_000,
        outcome: Outcome::Answered,
        status: 200,
        queue_ns: 1,
        restore_ns: 2_000,
        run_ns: 3_000_000,
        cpu_ns: 4,
        memory_bytes: 64 << 20,
        request_bytes: 5,
        response_bytes: 6,
        egress_bytes: 8,
        ingress_bytes: 9,
        cold: true,
        exits: 7,
        probe: false,
    }
}

fn node_messages() -> Vec<NodeMessage> {
    let versions = vec![
        ObservedVersion {
            function: function(),
            version: Digest([1; 32]),
            state: VersionState::Preparing,
            routed: false,
            record: None,
        },
        ObservedVersion {
            function: function(),
            version: Digest([2; 32]),
            state: VersionState::Ready,
            routed: true,
            record: None,
        },
        ObservedVersion {
            function: function(),
            version: Digest([4; 32]),
            state: VersionState::Ready,
            routed: false,
            record: Some(Record {
                outcomes: vec![(Outcome::Answered, 500), (Outcome::Crash, 1)],
                run_times: [(42, 300), (255, 1)].into_iter().collect(),
            }),
        },
        ObservedVersion {
            function: function(),
            version: Digest([3; 32]),
            state: VersionState::Failed {
                reason: "crashed".into(),
            },
            routed: false,
            record: None,
        },
    ];
    vec![
        NodeMessage::Hello(Hello {
            coordinates: Coordinates {
                latitude_microdegrees: 52_520_000,
                longitude_microdegrees: -13_405_000,
            },
            region: "eu-central".into(),
            ingress_url: "http://127.0.0.1:8080".into(),
            boot_epoch: 3,
            kvm: "pvm".into(),
            software: "0.1.0".into(),
        }),
        NodeMessage::Observed(Observed {
            generation: 300,
            versions,
        }),
        NodeMessage::Report(Report {
            versions: vec![VersionReport {
                function: function(),
                version: Digest([1; 32]),
                outcomes: Outcome::ALL.into_iter().zip(0..).collect(),
                run_ns: 70_000,
                run_times: [(33, 1)].into_iter().collect(),
            }],
            free_slots: 12,
            stopping: true,
            refused: 3,
        }),
        NodeMessage::Logs(LogBatch {
            entries: vec![LogEntry {
                function: function(),
                version: Digest([1; 32]),
                request: RequestId([2; 16]),
                at_ms: 1_700_000_000_000,
                failed: true,
                text: "a\n".into(),
            }],
            dropped: 7,
        }),
    ]
}

fn coordinator_messages() -> Vec<CoordinatorMessage> {
    let desired = DesiredFunction {
        function: function(),
        publisher_keys: vec![PublisherKey([0xcc; 32])],
        version: signed(),
        previous: Some(signed()),
    };
    vec![
        CoordinatorMessage::Welcome {
            node: "n1".parse().unwrap(),
            now_ms: 1_700_000_000_000,
        },
        CoordinatorMessage::Desired(Desired {
            generation: 2,
            functions: vec![desired],
            draining: Draining {
                drained: true,
                others: vec!["http://n2:8080".into()],
            },
        }),
        CoordinatorMessage::Refuse {
            reason: "no".into(),
        },
        CoordinatorMessage::Budgets(BudgetList {
            revision: 3,
            budgets: vec![BudgetTerms {
                scope: "acme/hello".parse().unwrap(),
                prices: vec![PriceSpan {
                    from_ms: 1_700_000_000_000,
                    prices: Prices {
                        million_requests: Amount(200_000_000),
                        ..Prices::default()
                    },
                }],
            }],
        }),
        CoordinatorMessage::Configured(Configured {
            desired: Desired::default(),
            configurations: vec![DesiredConfiguration {
                function: function(),
                version: Some(Configuration {
                    signed: SignedConfiguration {
                        statement: b"{\"b\":2}".to_vec(),
                        key: PublisherKey([0xaa; 32]),
                        signature: vec![0xbb; 64],
                    },
                    secrets: [(
                        "PASSWORD".to_owned(),
                        Secret::new([0xdd; 32], "hunter2".into()),
                    )]
                    .into(),
                }),
                previous: None,
            }],
        }),
    ]
}

fn bulk_requests() -> Vec<BulkRequest> {
    vec![
        BulkRequest::FetchIndex {
            digest: Digest([4; 32]),
        },
        BulkRequest::Usage(UsageBatch {
            boot_epoch: 3,
            first: 300,
            previous: Digest([5; 32]),
            hash: Digest([6; 32]),
            signature: vec![7; 64],
            records: PackedRecords::pack(&[record()]),
        }),
        BulkRequest::Renew {
            csr_der: vec![8; 3],
        },
        BulkRequest::FetchChunks {
            digest: Digest([4; 32]),
            places: vec![0, 7, 300],
        },
        BulkRequest::Lease(LeaseAsks {
            revision: 3,
            asks: vec![LeaseAsk {
                scope: "acme".parse().unwrap(),
                month_ms: 1_698_796_800_000,
                serial: 1,
                limit: 1_000,
                spent: 2_000,
                need: 3,
                want: 4,
                more: true,
                beyond: 5,
            }],
        }),
    ]
}

fn bulk_answers() -> Vec<BulkAnswer> {
    vec![
        BulkAnswer::Bytes { bytes: 1_000 },
        BulkAnswer::UsageStored { new: 1, known: 2 },
        BulkAnswer::Refused {
            reason: "no".into(),
        },
        BulkAnswer::Renewed {
            certificate_der: vec![9; 3],
        },
        BulkAnswer::Leases(vec![LeaseAnswer {
            scope: "acme".parse().unwrap(),
            month_ms: 1_698_796_800_000,
            serial: 2,
            limit: 3_000,
            ledger: 1_999,
            recall: true,
            exhausted: false,
        }]),
    ]
}

fn join_requests() -> Vec<JoinRequest> {
    vec![JoinRequest {
        secret: vec![5; 32],
        node: "n1".parse().unwrap(),
        csr_der: vec![0x30, 0],
    }]
}

fn join_answers() -> Vec<JoinAnswer> {
    vec![
        JoinAnswer::Joined {
            certificate_der: vec![0x30, 1],
            ca_der: vec![0x30, 2],
        },
        JoinAnswer::Refused {
            reason: "used".into(),
        },
    ]
}

/// Encodes each message that the version has, checks that it comes back, and lists the frames in hexadecimal.
fn frames<T>(messages: &[T], version: Version) -> String
where
    T: Message + PartialEq + std::fmt::Debug,
{
    let frame = |message: &T| {
        let frame = match codec::encode_for(message, version) {
            Err(FrameError::NotThere(_)) => return None,
            frame => frame.unwrap(),
        };
        let (length, following) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(codec::following_bytes(*length), Ok(following.len()));
        let back = codec::decode_for::<T>(following, version).unwrap();
        if version == Version::NOW {
            assert_eq!(&back, message);
        }
        // What an older version does not say is lost, and nothing else.
        assert_eq!(codec::encode_for(&back, version).unwrap(), frame);
        Some(hex::encode(frame))
    };
    let frames: Vec<_> = messages.iter().filter_map(frame).collect();
    frames.join("\n")
}

fn both<T, U>(one: &[T], other: &[U], version: Version) -> String
where
    T: Message + PartialEq + std::fmt::Debug,
    U: Message + PartialEq + std::fmt::Debug,
{
    format!("{}\n--\n{}", frames(one, version), frames(other, version))
}

#[test]
fn node_messages_have_the_bytes_of_version_6() {
    insta::assert_snapshot!(frames(&node_messages(), Version::NOW));
}

#[test]
fn coordinator_messages_have_the_bytes_of_version_6() {
    insta::assert_snapshot!(frames(&coordinator_messages(), Version::NOW));
}

#[test]
fn bulk_messages_have_the_bytes_of_version_6() {
    insta::assert_snapshot!(both(&bulk_requests(), &bulk_answers(), Version::NOW));
}

#[test]
fn join_messages_have_the_bytes_of_version_6() {
    insta::assert_snapshot!(both(&join_requests(), &join_answers(), Version::NOW));
}

#[test]
fn node_messages_have_the_bytes_of_version_5() {
    insta::assert_snapshot!(frames(&node_messages(), Version::BEFORE));
}

#[test]
fn coordinator_messages_have_the_bytes_of_version_5() {
    insta::assert_snapshot!(frames(&coordinator_messages(), Version::BEFORE));
}

#[test]
fn bulk_messages_have_the_bytes_of_version_5() {
    insta::assert_snapshot!(both(&bulk_requests(), &bulk_answers(), Version::BEFORE));
}

#[test]
fn join_messages_have_the_bytes_of_version_5() {
    insta::assert_snapshot!(both(&join_requests(), &join_answers(), Version::BEFORE));
}

#[test]
fn a_report_of_version_5_is_read_as_one_that_refused_nothing() {
    // Version, Report, no versions, free slots, stopping.
    let following = [5, 0, 2, 0, 4, 1];
    let report = NodeMessage::Report(Report {
        free_slots: 4,
        stopping: true,
        ..Report::default()
    });
    let read = codec::decode_for::<NodeMessage>(&following, Version::BEFORE);
    assert_eq!(read, Ok(report));
}

#[test]
fn a_kind_that_is_not_known_is_told_from_what_cannot_be_read() {
    for version in [Version::NOW, Version::BEFORE] {
        let [low, high] = version.number().to_le_bytes();
        // bincode writes numbers from 251 on as 251 and two bytes.
        for (kind, number) in [(vec![99], 99), (vec![251, 1, 2], 513)] {
            let following = [&[low, high], &kind[..], b"whatever it has"].concat();
            let unknown = FrameError::Unknown(number);
            let decoded = codec::decode_for::<NodeMessage>(&following, version);
            assert_eq!(decoded, Err(unknown.clone()));
            let decoded = codec::decode_for::<BulkRequest>(&following, version);
            assert_eq!(decoded, Err(unknown));
        }
    }
}

#[test]
fn a_frame_of_another_version_than_was_agreed_on_is_refused() {
    let frame = codec::encode(&NodeMessage::Report(Report::default())).unwrap();
    let read = codec::decode_for::<NodeMessage>(&frame[4..], Version::BEFORE);
    let (said, agreed) = (Version::NOW.number(), Version::BEFORE.number());
    assert_eq!(read, Err(FrameError::NotAgreed { said, agreed }));
}

/// Fails to compile when a message is added, so that it is added above as well.
#[test]
fn every_kind_of_message_is_in_the_lists() {
    let node = node_messages().iter().fold([0; 4], |mut seen, message| {
        seen[match message {
            NodeMessage::Hello(_) => 0,
            NodeMessage::Observed(_) => 1,
            NodeMessage::Report(_) => 2,
            NodeMessage::Logs(_) => 3,
        }] += 1;
        seen
    });
    let coordinator = coordinator_messages()
        .iter()
        .fold([0; 5], |mut seen, message| {
            seen[match message {
                CoordinatorMessage::Welcome { .. } => 0,
                CoordinatorMessage::Desired(_) => 1,
                CoordinatorMessage::Refuse { .. } => 2,
                CoordinatorMessage::Budgets(_) => 3,
                CoordinatorMessage::Configured(_) => 4,
            }] += 1;
            seen
        });
    let bulk = bulk_answers().iter().fold([0; 5], |mut seen, message| {
        seen[match message {
            BulkAnswer::Bytes { .. } => 0,
            BulkAnswer::UsageStored { .. } => 1,
            BulkAnswer::Refused { .. } => 2,
            BulkAnswer::Renewed { .. } => 3,
            BulkAnswer::Leases(_) => 4,
        }] += 1;
        seen
    });
    assert_eq!(node, [1; 4]);
    assert_eq!(coordinator, [1; 5]);
    assert_eq!(bulk, [1; 5]);
    for request in bulk_requests() {
        match request {
            BulkRequest::FetchIndex { .. }
            | BulkRequest::Usage(_)
            | BulkRequest::Renew { .. }
            | BulkRequest::FetchChunks { .. }
            | BulkRequest::Lease(_) => {}
        }
    }
    for answer in join_answers() {
        match answer {
            JoinAnswer::Joined { .. } | JoinAnswer::Refused { .. } => {}
        }
    }
}

/// A frame without its length.
fn following<T: Message>(message: &T) -> Vec<u8> {
    codec::encode(message).unwrap().split_off(4)
}

#[test]
fn a_peer_of_another_version_is_told_both_versions() {
    for message in node_messages() {
        let mut bytes = following(&message);
        bytes[0] = 1;
        let error = codec::decode::<NodeMessage>(&bytes).unwrap_err();
        assert_eq!(error, FrameError::Version(1));
        assert!(
            error.to_string().contains("version 1, this side 6"),
            "{error}"
        );
    }
}

#[test]
fn every_cut_of_a_message_is_malformed() {
    for message in node_messages() {
        let bytes = following(&message);
        for cut in 0..bytes.len() {
            let error = codec::decode::<NodeMessage>(&bytes[..cut]).unwrap_err();
            assert!(
                matches!(error, FrameError::Malformed(_)),
                "cut at {cut}: {error}"
            );
        }
    }
}

#[test]
fn bytes_after_a_message_are_malformed() {
    for message in coordinator_messages() {
        let mut bytes = following(&message);
        bytes.push(0);
        let error = codec::decode::<CoordinatorMessage>(&bytes).unwrap_err();
        assert_eq!(
            error,
            FrameError::Malformed("bytes after the message".into())
        );
    }
}

#[test]
fn a_frame_that_claims_too_much_is_refused_by_its_length_alone() {
    let most = MAX_CONTROL_FRAME_BYTES;
    let length = |bytes: usize| u32::try_from(bytes).unwrap().to_le_bytes();
    assert_eq!(codec::following_bytes(length(most)), Ok(most));
    assert_eq!(
        codec::following_bytes(length(most + 1)),
        Err(FrameError::TooLarge(most + 1))
    );
    assert!(matches!(
        codec::following_bytes([0xff; 4]),
        Err(FrameError::TooLarge(_))
    ));
    for short in 0..2 {
        let error = codec::following_bytes(length(short)).unwrap_err();
        assert!(matches!(error, FrameError::Malformed(_)), "{error}");
    }
}

#[test]
fn a_message_that_is_too_large_is_not_sent() {
    let reason = "x".repeat(MAX_CONTROL_FRAME_BYTES);
    let error = codec::encode(&CoordinatorMessage::Refuse { reason }).unwrap_err();
    assert_eq!(error, FrameError::TooLarge(MAX_CONTROL_FRAME_BYTES + 8));
}

/// The largest numbers that bincode's variable-length integers can claim.
const HUGE: [[u8; 9]; 3] = [
    [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    [0xfd, 0, 0, 0, 0, 0, 1, 0, 0],
];

/// To allocate what these lengths say would end the process, so that an error is proof enough.
#[test]
fn a_length_inside_a_message_allocates_nothing_by_itself() {
    let version = PROTOCOL_VERSION.to_le_bytes();
    for claim in HUGE {
        // Refuse { reason }: a text.
        let text = [&version[..], &[2], &claim].concat();
        // Desired { generation: 0, functions }: a list of structures.
        let list = [&version[..], &[1, 0], &claim].concat();
        for bytes in [text, list] {
            let error = codec::decode::<CoordinatorMessage>(&bytes).unwrap_err();
            assert!(matches!(error, FrameError::Malformed(_)), "{error}");
        }
        // JoinRequest { secret, .. }: a list of bytes.
        let bytes = [&version[..], &claim].concat();
        assert!(matches!(
            codec::decode::<JoinRequest>(&bytes),
            Err(FrameError::Malformed(_))
        ));
    }
}

#[test]
fn a_list_that_is_longer_than_the_frame_limit_is_refused() {
    // As many one-byte elements as the limit allows plus some, claimed and present.
    let count = MAX_CONTROL_FRAME_BYTES + 16;
    let mut bytes = PROTOCOL_VERSION.to_le_bytes().to_vec();
    bytes.push(0xfc);
    bytes.extend(u32::try_from(count).unwrap().to_le_bytes());
    bytes.resize(bytes.len() + count, 0);
    assert!(matches!(
        codec::decode::<JoinRequest>(&bytes),
        Err(FrameError::Malformed(_))
    ));
}

#[test]
fn a_frame_header_is_six_bytes() {
    let frame = codec::encode(&BulkAnswer::Bytes { bytes: 1 }).unwrap();
    assert_eq!(frame.len(), FRAME_HEADER_BYTES + 2);
    assert_eq!(frame[..FRAME_HEADER_BYTES], [4, 0, 0, 0, 6, 0]);
}

proptest::proptest! {
    #[test]
    fn random_bytes_never_make_the_reader_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
    ) {
        let mut versioned = PROTOCOL_VERSION.to_le_bytes().to_vec();
        versioned.extend(&bytes);
        for bytes in [&bytes, &versioned] {
            let _ = codec::decode::<NodeMessage>(bytes);
            let _ = codec::decode_for::<NodeMessage>(bytes, Version::BEFORE);
            let _ = codec::decode_file::<Desired>(bytes, 5..=6);
            let _ = codec::decode::<CoordinatorMessage>(bytes);
            let _ = codec::decode::<BulkRequest>(bytes);
        }
    }
}
