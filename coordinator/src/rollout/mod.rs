//! Rollouts: moving the fleet from one version of a function to another, in waves with gates.
//!
//! [`plan`] decides, without I/O, over nodes as [`sight`] describes them and in waves as [`wave`]
//! does; [`execute`] looks at the fleet, stores what was decided and only
//! then publishes it; [`target`] says what each node is to have.

mod evidence;
mod execute;
mod gate;
mod plan;
mod sight;
mod target;
mod wave;

pub(crate) use execute::{Begun, Foreseen, Order, RolloutError, Rollouts, Timing};
pub(crate) use gate::Finding;
pub(crate) use plan::Rollout;
pub(crate) use sight::{Presence, Seen, Sight};
pub(crate) use target::{Configured, Target, Version};
#[cfg(test)]
pub(crate) use wave::Policy;
pub(crate) use wave::{Tally, Wave};
