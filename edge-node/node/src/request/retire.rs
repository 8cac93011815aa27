//! What becomes of a slot when nobody is to be answered from it any more: reset, kept, made anew or given up. Neither
//! a caller nor a guest can have the connection's thread do more than little of that: what takes longer the janitor
//! does.

use std::rc::Rc;
use std::sync::Arc;

use holm_model::ids::RequestId;
use holm_vmm::Slot;

use crate::deploy::routes::Live;
use crate::lane::Lane;
use crate::limits::MAX_LOGGED_BYTES;
use crate::pool::core::{Holds, SlotId};

/// What is to become of the slot.
#[derive(Debug)]
pub(crate) enum Remains {
    /// It answered: to be reset.
    Answered(Box<Slot>),
    /// It waits for a request: it is as it was.
    Waiting(Box<Slot>),
    /// It was stopped on its way: to be made fresh.
    Stopped(Box<Slot>),
    /// Not to be used again. Without the slot when that was lost with its worker.
    Broken(Option<Box<Slot>>),
}

/// Brings the slot back to the pool, as fresh as its version's isolation asks for.
pub(crate) fn retire(
    lane: &Rc<Lane>,
    live: &Arc<Live>,
    at: SlotId,
    id: RequestId,
    mut remains: Remains,
) {
    if let Remains::Answered(slot)
    | Remains::Waiting(slot)
    | Remains::Stopped(slot)
    | Remains::Broken(Some(slot)) = &mut remains
    {
        log(lane, live, id, slot);
    }
    match remains {
        Remains::Broken(slot) => lane.pool.discard(slot, at),
        Remains::Answered(mut slot) => match slot.reset_soon() {
            Ok(true) => give_back(lane, live, slot, at),
            Ok(false) => lane.pool.renew(slot, at),
            Err(error) => {
                let function = &live.function;
                tracing::error!(%function, %error, "a slot could not be reset; another takes its place");
                lane.pool.discard(Some(slot), at);
            }
        },
        Remains::Waiting(slot) if !slot.is_kept() => give_back(lane, live, slot, at),
        Remains::Waiting(slot) => match lane.serves(live) {
            true => lane.pool.finish(slot, at, Holds::Kept(live.key)),
            false => lane.pool.discard(Some(slot), at),
        },
        // A guest in the middle of something cannot be reset, but can be replaced.
        Remains::Stopped(slot) => lane.pool.renew(slot, at),
    }
}

fn give_back(lane: &Lane, live: &Live, slot: Box<Slot>, at: SlotId) {
    // Nobody asks for a version that was replaced meanwhile, and the pool was told so already.
    let holds = match lane.serves(live) {
        true => Holds::Pristine(live.key),
        false => Holds::Nothing,
    };
    lane.pool.finish(slot, at, holds);
}

/// Passes on what the program wrote.
pub(crate) fn log(lane: &Lane, live: &Live, request: RequestId, slot: &mut Slot) {
    let log = slot.take_log();
    if log.is_empty() {
        return;
    }
    let (function, version) = (&live.function, live.version.short());
    let shown = &log[..log.len().min(MAX_LOGGED_BYTES)];
    let text = String::from_utf8_lossy(shown);
    let cut_bytes = log.len() - shown.len();
    tracing::info!(target: "holm::function", %function, version, %request, cut_bytes, text = text.trim_end());
    lane.shared.logs.add(live, request, false, &text);
}
