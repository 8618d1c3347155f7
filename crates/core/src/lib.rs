//! Headwater without Python, in the order in which a reading travels.
//!
//! `mqtt` parses packets, `net` owns sockets and threads, `decode` turns payloads into typed rows,
//! `log` makes them durable, `window` aggregates them. `policy` decides who may do what. `load` plays a fleet of devices from outside.
//! `sessions` keeps the state of MQTT sessions in the log. Imports run from `net` to `decode`, `log`, `policy` and `sessions`; `mqtt`, `decode`, `policy`, `window` do no I/O.

pub mod decode;
pub mod load;
pub mod log;
pub mod mqtt;
pub mod net;
pub mod policy;
pub mod rows;
pub mod schema;
pub mod sessions;
mod short;
pub mod window;
