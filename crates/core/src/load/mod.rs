//! A fleet of simulated devices that publishes telemetry over real MQTT, with labelled faults.
//!
//! `options` says what to play, `faults` plans what goes wrong and keeps the labels, `payloads` makes
//! reading n of device d from nothing but the seed, `client` is the MQTT a publisher needs, `connection`
//! owns one socket and its un-acknowledged readings, `fleet` runs the threads, `report` counts.
//! It is a client of any MQTT server and knows nothing of our gateway.

pub mod client;
mod connection;
pub mod faults;
pub mod fleet;
pub mod options;
pub mod payloads;
pub mod report;
mod worker;

#[cfg(test)]
mod tests;

pub use faults::{Fault, FaultKind, Label};
pub use fleet::Fleet;
pub use options::{FieldModel, FleetError, FleetOptions, Protocol};
pub use payloads::Payloads;
pub use report::FleetReport;
