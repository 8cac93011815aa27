//! A row of the ledger as a CloudEvent (CloudEvents 1.0, JSON event format; batches by section 4).

use holm_model::api::{LedgerRow, RecordEvent};
use holm_model::ids::Digest;
use holm_model::price::{Units, memory_kib_ms};

/// The type of the events. Raised with the meaning of their data.
const TYPE: &str = "run.holm.usage.record.v1";

/// The media type of a batch in structured mode (HTTP protocol binding 1.0.2, section 3.3).
pub(super) const BATCH: &str = "application/cloudevents-batch+json";

/// Where events of this fleet come from.
pub(super) fn source(fleet: Digest) -> String {
    format!("urn:holm:fleet:{}", fleet.hex())
}

/// The event of a row. Its id is the record's key, so whoever gets it twice knows.
pub(super) fn event(source: &str, row: &LedgerRow) -> serde_json::Value {
    let record = &row.record;
    let id = format!("{}/{}/{}", row.node, record.boot_epoch, record.sequence);
    let mut event = serde_json::json!({
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": TYPE,
        "subject": record.function.to_string(),
        "datacontenttype": "application/json",
        "data": data(row),
    });
    // RFC 3339 ends with the year 9999; a node may say any time, and it is in the data in any case.
    let accepted = i64::try_from(record.accepted_ms).ok();
    let accepted = accepted.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    if let Some(accepted) = accepted {
        event["time"] = accepted.to_string().into();
    }
    event
}

fn data(row: &LedgerRow) -> RecordEvent {
    let record = &row.record;
    RecordEvent {
        node: row.node.clone(),
        record: record.clone(),
        memory_kib_ms: memory_kib_ms(record),
        billed: match record.probe {
            true => Units::default(),
            false => Units::of(record),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::testing::record;

    #[test]
    fn an_event_has_the_records_key_for_its_id_and_integers_with_units() {
        let row = LedgerRow {
            row: 9,
            node: "edge-1".parse().unwrap(),
            record: record(7, 3),
        };
        let event = event(&source(Digest([0xab; 32])), &row);
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "edge-1/7/3");
        assert_eq!(
            event["source"],
            format!("urn:holm:fleet:{}", "ab".repeat(32))
        );
        assert_eq!(event["type"], "run.holm.usage.record.v1");
        assert_eq!(event["subject"], "acme/hello");
        assert_eq!(event["time"], "2023-11-14T22:13:20Z");
        let data = &event["data"];
        assert_eq!(data["node"], "edge-1");
        assert_eq!(data["sequence"], 3);
        assert_eq!(data["run_ns"], 1_000_001);
        assert_eq!(data["billed"]["requests"], 1);
        assert_eq!(data["billed"]["egress_bytes"], 13);
        assert_eq!(data["memory_kib_ms"], 2 * (64 << 10));
        assert!(data["row"].is_null(), "a row's number is the ledger's own");
    }

    #[test]
    fn a_probe_is_told_and_bills_nothing_and_a_time_beyond_all_calendars_is_left_out() {
        let mut probe = record(1, 1);
        probe.probe = true;
        probe.accepted_ms = i64::MAX as u64 - 1;
        let row = LedgerRow {
            row: 1,
            node: "n".parse().unwrap(),
            record: probe,
        };
        let event = event("urn:x", &row);
        assert_eq!(event["data"]["probe"], true);
        assert_eq!(event["data"]["billed"]["requests"], 0);
        assert!(event.get("time").is_none());
    }
}
