//! A fleet of simulated devices that publishes telemetry over real MQTT, with labelled faults.
//!
//! `options` says what to play, `schedule` gives each reading its time, `faults` plans what goes wrong and
//! keeps the labels, `payloads` makes reading n of device d from nothing but the seed. `connection` owns one
//! socket and its un-acknowledged readings, `pace` tells which device is due, `worker` is one thread of
//! senders, `links` its connections' coming and going, `ending` its beginning and end, `fleet` runs the threads,
//! `report` counts.
//! It is a client of any MQTT server and knows nothing of our gateway.
//!
//! `generator` makes a load generator of a fleet (`headwater bench`): `template` writes the user's payload and
//! `subscribing` holds the connections that take messages in.

mod connection;
mod ending;
pub mod faults;
pub mod fleet;
pub mod generator;
mod links;
mod names;
pub mod options;
mod pace;
pub mod payloads;
pub mod report;
mod schedule;
mod subscribing;
pub mod template;
mod worker;

#[cfg(test)]
mod tests;

pub use faults::{Fault, FaultKind, Label};
pub use fleet::{Fleet, Histograms};
pub use generator::GeneratorOptions;
pub use options::{FieldModel, FleetError, FleetOptions};
pub use payloads::Payloads;
pub use report::{FleetReport, Latency};
pub use template::Template;
