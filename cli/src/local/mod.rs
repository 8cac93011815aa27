//! The developer's tools: everything that works on this machine alone, without a coordinator.

pub(crate) mod build;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod files;
pub(crate) mod init;
pub(crate) mod machine;
pub(crate) mod project;
pub(crate) mod run;
