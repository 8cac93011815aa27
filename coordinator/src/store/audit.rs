//! The ledger from end to end, for its audit: one node after the other, in pages.

use std::collections::{BTreeMap, VecDeque};

use holm_model::api::{AuditFault, AuditNode, AuditProblem, AuditView};
use holm_model::chain::Place;
use holm_model::ids::{Digest, Name};

use super::error::During as _;
use super::sql::{Row, Transaction, query};
use super::sums::{self, NamedQuantities};
use super::usage::{COLUMNS, ledger_row};
use super::{Store, StoreError, bytes32, text, uint};
use crate::ledger::audit::{Chained, Findings, NodeAudit, StoredBatch, StoredRow};
use crate::ledger::checkpoint::SignedCheckpoint;
use crate::limits::{AUDIT_PAGE_BATCHES, LEDGER_CHUNK_ROWS, MAX_AUDIT_PROBLEMS};

const DOING: &str = "audit the ledger";

impl Store {
    /// Whether the ledger is whole: by its keys, by the hashes of its batches, and by their signatures, for which the
    /// certificate of the fleet's authority vouches.
    pub(crate) async fn audit(&self, authority: &[u8]) -> Result<AuditView, StoreError> {
        // One transaction, so that the numbers belong together.
        let mut tx = self.read().await?;
        let mut findings = Findings::default();
        let mut view = AuditView::default();
        let mut after: Option<Name> = None;
        let mut dropped: BTreeMap<Name, NamedQuantities> = BTreeMap::new();
        while let Some(node) = next_node(&mut tx, after.as_ref()).await? {
            let checkpoints = checkpoints(&mut tx, &node).await?;
            let mut audit = begin(
                &mut tx,
                &node,
                authority,
                checkpoints,
                &mut findings,
                &mut dropped,
            )
            .await?;
            read_all(&mut tx, &node, &mut audit).await?;
            let (journals, sums) = audit.end();
            view.journals.extend(journals);
            view.nodes.push(sums);
            after = Some(node);
        }
        let (resent,): (i64,) = query("SELECT value FROM counters WHERE name = 'usage_resent'")
            .one(&mut tx)
            .await
            .during(DOING)?;
        let (rows, requests): (i64, i64) =
            query("SELECT COUNT(*), COUNT(DISTINCT request) FROM usage")
                .one(&mut tx)
                .await
                .during(DOING)?;
        view.duplicates = uint(rows - requests);
        if view.duplicates > 0 {
            name_duplicates(&mut tx, &mut findings).await?;
        }
        for (node, grain) in sums::disagreements(&mut tx, &dropped).await? {
            findings.add(AuditProblem {
                fault: AuditFault::Sums,
                node,
                boot_epoch: 0,
                first: 0,
                last: 0,
                why: format!(
                    "its sums by {} s are not those of its rows: they were changed, or a coordinator of an older Holm \
                     entered rows; bills made of them are wrong",
                    grain / 1000
                ),
            });
        }
        let (looked, refused): (i64, i64) = query(
            "SELECT COALESCE((SELECT value FROM counters WHERE name = 'usage_clock_ms'), 0),
                    COALESCE((SELECT value FROM counters WHERE name = 'usage_clock_refused_ms'), 0)",
        )
        .one(&mut tx)
        .await
        .during(DOING)?;
        if refused > 0 {
            findings.notices.push(format!(
                "old records are not removed: the coordinator's clock said {} when it had said {} before; set it right, or \
                 start the coordinator once with --trust-clock",
                time_text(refused),
                time_text(looked),
            ));
        }
        view.rows = uint(rows);
        view.resent = uint(resent);
        view.total = total(&view.nodes);
        view.probes = view.total.probes;
        let sum = |of: fn(&holm_model::api::AuditJournal) -> u64| {
            view.journals.iter().map(of).fold(0, u64::saturating_add)
        };
        view.missing = sum(|journal| journal.missing);
        view.dropped = sum(|journal| journal.dropped);
        view.unchained = sum(|journal| journal.unchained);
        view.batches = sum(|journal| journal.batches);
        // Rows that are under no key that a node gives were told to nobody.
        view.whole = view.duplicates == 0
            && view.rows == sum(|journal| journal.rows)
            && view.missing == 0
            && view.total.balanced
            && findings.problems.is_empty();
        view.problems = findings.problems;
        view.problems_left_out = findings.left_out;
        view.notices = findings.notices;
        Ok(view)
    }
}

fn time_text(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms);
    time.map_or_else(|_| format!("{ms} ms"), |time| time.to_string())
}

/// All nodes together.
fn total(nodes: &[AuditNode]) -> AuditNode {
    let mut total = AuditNode {
        balanced: true,
        ..AuditNode::default()
    };
    for node in nodes {
        total.admitted = total.admitted.saturating_add(node.admitted);
        total.answered += node.answered;
        total.function_errors += node.function_errors;
        total.crashes += node.crashes;
        total.timeouts += node.timeouts;
        total.cancelled += node.cancelled;
        total.shed += node.shed;
        total.platform_faults += node.platform_faults;
        total.probes += node.probes;
        total.balanced &= node.balanced;
    }
    total
}

/// The node after this one that has usage.
async fn next_node(tx: &mut Transaction, after: Option<&Name>) -> Result<Option<Name>, StoreError> {
    let after = after.map_or("", Name::as_str);
    let (found,): (Option<String>,) = query(
        "SELECT MIN(node) FROM (SELECT MIN(node) AS node FROM usage WHERE node > ?
                                UNION ALL
                                SELECT MIN(node) AS node FROM usage_batches WHERE node > ?
                                UNION ALL
                                SELECT MIN(node) AS node FROM usage_checkpoints WHERE node > ?) AS nodes",
    )
    .bind(after)
    .bind(after)
    .bind(after)
    .one(tx)
    .await
    .during(DOING)?;
    found.map(|node| text("a node's name", &node)).transpose()
}

/// An audit that goes on behind the node's checkpoints, whose sums it adds to `dropped`.
pub(super) async fn begin<'a>(
    tx: &mut Transaction,
    node: &Name,
    authority: &[u8],
    checkpoints: Vec<(u64, SignedCheckpoint)>,
    findings: &'a mut Findings,
    dropped: &mut BTreeMap<Name, NamedQuantities>,
) -> Result<NodeAudit<'a>, StoreError> {
    let chained = chained(tx, node).await?;
    let mut audit = NodeAudit::begin(node.clone(), chained, authority, findings);
    for (boot_epoch, signed) in checkpoints {
        let Some(checkpoint) = signed.read(authority, node, boot_epoch) else {
            audit.bad_checkpoint(boot_epoch);
            continue;
        };
        let sums = dropped.entry(node.clone()).or_default();
        for (name, more) in &checkpoint.sums {
            let sum = sums.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*more);
        }
        audit.resume(checkpoint);
    }
    Ok(audit)
}

/// The checkpoints of a node by their epochs.
pub(super) async fn checkpoints(
    tx: &mut Transaction,
    node: &Name,
) -> Result<Vec<(u64, SignedCheckpoint)>, StoreError> {
    let rows: Vec<(i64, String, Vec<u8>)> = query(
        "SELECT boot_epoch, checkpoint, signature FROM usage_checkpoints WHERE node = ? ORDER BY boot_epoch",
    )
    .bind(node)
    .all(tx)
    .await
    .during("read checkpoints of usage")?;
    let read = |(boot_epoch, text, signature)| {
        let signed = SignedCheckpoint { text, signature };
        (uint(boot_epoch), signed)
    };
    Ok(rows.into_iter().map(read).collect())
}

/// Tells an audit of all batches and rows of its node.
async fn read_all(
    tx: &mut Transaction,
    node: &Name,
    audit: &mut NodeAudit<'_>,
) -> Result<(), StoreError> {
    let mut rows = Rows::of(node);
    let mut after = (0, 0);
    loop {
        let page = batches(tx, node, after).await?;
        let Some(last) = page.last() else { break };
        after = (last.place.boot_epoch, last.place.first);
        for batch in page {
            rows.read_batch(tx, batch, audit).await?;
        }
    }
    let end = (i64::MAX as u64, i64::MAX as u64);
    rows.read(tx, end, audit).await
}

async fn chained(tx: &mut Transaction, node: &Name) -> Result<Chained, StoreError> {
    let upto: Option<(i64,)> = query("SELECT upto FROM usage_unchained WHERE node = ?")
        .bind(node)
        .optional(&mut *tx)
        .await
        .during(DOING)?;
    let signers: Vec<(Vec<u8>, Vec<u8>)> =
        query("SELECT fingerprint, certificate FROM usage_signers WHERE node = ?")
            .bind(node)
            .all(tx)
            .await
            .during(DOING)?;
    let mut certificates = BTreeMap::new();
    for (fingerprint, certificate) in signers {
        // Of another length it is nobody's.
        if let Ok(fingerprint) = bytes32("a fingerprint", &fingerprint) {
            certificates.insert(Digest(fingerprint), certificate);
        }
    }
    Ok(Chained {
        unchained_upto: upto.map_or(0, |(row,)| uint(row)),
        certificates,
    })
}

/// The batches of a node behind the one that begins at this key.
pub(super) async fn batches(
    tx: &mut Transaction,
    node: &Name,
    (epoch, first): (u64, u64),
) -> Result<Vec<StoredBatch>, StoreError> {
    let rows = query(
        "SELECT boot_epoch, first, last, previous, hash, leaves, signature, signer, received_ms
         FROM usage_batches
         WHERE node = ? AND (boot_epoch, first) > (?, ?) ORDER BY boot_epoch, first LIMIT ?",
    )
    .bind(node)
    .bind(epoch)
    .bind(first)
    .bind(AUDIT_PAGE_BATCHES)
    .rows(tx)
    .await
    .during(DOING)?;
    let read = |row: &Row| {
        let number = |column: &str| row.get(column).map(uint).during(DOING);
        let bytes = |column: &str| row.get::<Vec<u8>>(column).during(DOING);
        // Of another length it is not what was hashed or signed, and is found to be so.
        let digest = |column: &str| {
            let bytes = bytes(column)?;
            Ok::<_, StoreError>(Digest(bytes.try_into().unwrap_or_default()))
        };
        Ok(StoredBatch {
            place: Place {
                boot_epoch: number("boot_epoch")?,
                first: number("first")?,
                last: number("last")?,
                previous: digest("previous")?,
            },
            hash: digest("hash")?,
            leaves: bytes("leaves")?,
            signature: bytes("signature")?,
            signer: digest("signer")?,
            received_ms: number("received_ms")?,
        })
    };
    rows.iter().map(read).collect()
}

/// A node's rows in the order of their keys, read in pages.
pub(super) struct Rows<'a> {
    node: &'a Name,
    /// The key of the last row that was read.
    after: (u64, u64),
    /// Read, and not told yet.
    ahead: VecDeque<StoredRow>,
    ended: bool,
    /// How many were told, and the highest number among them.
    pub(super) told: u64,
    pub(super) last_row: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn of(node: &'a Name) -> Self {
        Rows {
            node,
            after: (0, 0),
            ahead: VecDeque::new(),
            ended: false,
            told: 0,
            last_row: 0,
        }
    }

    /// Tells the audit of a batch, and of its rows and those before it, which belong to no batch.
    pub(super) async fn read_batch(
        &mut self,
        tx: &mut Transaction,
        batch: StoredBatch,
        audit: &mut NodeAudit<'_>,
    ) -> Result<(), StoreError> {
        let Place {
            boot_epoch,
            first,
            last,
            ..
        } = batch.place;
        let before = (boot_epoch, first.saturating_sub(1));
        self.read(tx, before, audit).await?;
        audit.batch(batch);
        self.read(tx, (boot_epoch, last), audit).await
    }

    /// Tells the audit of every row up to this key that was not told yet.
    async fn read(
        &mut self,
        tx: &mut Transaction,
        upto: (u64, u64),
        audit: &mut NodeAudit<'_>,
    ) -> Result<(), StoreError> {
        loop {
            while let Some(row) = self
                .ahead
                .pop_front_if(|row| (row.boot_epoch, row.sequence) <= upto)
            {
                self.told += 1;
                self.last_row = self.last_row.max(row.row);
                audit.row(&row);
            }
            if self.ended || !self.ahead.is_empty() {
                return Ok(());
            }
            self.next_page(tx).await?;
        }
    }

    async fn next_page(&mut self, tx: &mut Transaction) -> Result<(), StoreError> {
        let mut page = query("SELECT row, ");
        page.push(COLUMNS).push(" FROM usage WHERE node = ");
        page.push_bind(self.node)
            .push(" AND (boot_epoch, sequence) > ");
        page.push_row([self.after.0.into(), self.after.1.into()]);
        page.push(" ORDER BY boot_epoch, sequence LIMIT ");
        page.push_bind(LEDGER_CHUNK_ROWS as u64);
        let rows = page.rows(tx).await.during(DOING)?;
        for row in &rows {
            let number = |column: &str| row.get(column).map(uint).during(DOING);
            let stored = StoredRow {
                row: number("row")?,
                boot_epoch: number("boot_epoch")?,
                sequence: number("sequence")?,
                record: ledger_row(row).ok().map(|row| row.record),
            };
            self.after = (stored.boot_epoch, stored.sequence);
            self.ahead.push_back(stored);
        }
        self.ended = rows.len() < LEDGER_CHUNK_ROWS;
        Ok(())
    }
}

/// Rows whose request another row has already.
async fn name_duplicates(tx: &mut Transaction, findings: &mut Findings) -> Result<(), StoreError> {
    let rows: Vec<(String, i64, i64, i64)> = query(
        "SELECT node, boot_epoch, sequence, row FROM usage AS later
         WHERE EXISTS (SELECT 1 FROM usage AS earlier
                       WHERE earlier.request = later.request AND earlier.row < later.row)
         ORDER BY row LIMIT ?",
    )
    .bind(MAX_AUDIT_PROBLEMS as u64)
    .all(tx)
    .await
    .during(DOING)?;
    for (node, boot_epoch, sequence, _) in rows {
        findings.add(AuditProblem {
            fault: AuditFault::Replayed,
            node: text("a node's name", &node)?,
            boot_epoch: uint(boot_epoch),
            first: uint(sequence),
            last: uint(sequence),
            why: "its request is in the ledger already, under another key".into(),
        });
    }
    Ok(())
}
