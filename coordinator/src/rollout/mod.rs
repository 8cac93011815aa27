//! Rollouts: moving the fleet from one version of a function to another, in waves with gates.
//!
//! [`plan`] decides, without I/O; [`execute`] looks at the fleet, stores what was decided and only
//! then publishes it; [`target`] says what each node is to have.

mod execute;
mod plan;
mod target;

pub(crate) use execute::{RolloutError, Rollouts, Timing};
pub(crate) use plan::{Presence, Rollout, Seen, Sight, Tally};
pub(crate) use target::{Target, Version};
