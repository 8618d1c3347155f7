//! Gateway and log alone, for measuring: one stream, durable, until standard input ends.
//!
//! `cargo run --release --example gateway -- DIRECTORY PORT [THREADS]`

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use headwater_core::decode::{FieldSpec, Format, StreamSpec, TimeSpec, TimeUnit};
use headwater_core::log::{Log, LogOptions};
use headwater_core::net::{
    Gateway, GatewayOptions, StreamBinding, dead_letters_schema, downlink_schema, raw_schema,
};
use headwater_core::schema::{Column, ColumnType, Schema, SchemaId, StreamId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("which DIRECTORY shall the log use?")?;
    let port: u16 = arguments.next().unwrap_or_else(|| "1883".into()).parse()?;
    let threads = arguments.next().unwrap_or_else(|| "2".into()).parse()?;

    let double = |name: &str| FieldSpec { name: name.into(), ty: ColumnType::Double, path: name.into() };
    let fields = vec![double("temperature"), double("humidity"), double("battery")];
    let mut columns = vec![("site", ColumnType::String), ("device", ColumnType::String)];
    columns.extend([("ts", ColumnType::Timestamp), ("received_at", ColumnType::Timestamp)]);
    columns.extend(fields.iter().map(|field| (field.name.as_str(), field.ty)));
    let columns = columns.iter().map(|(name, ty)| Column { name: (*name).into(), ty: *ty }).collect();
    let schema = Schema::new(SchemaId(16), StreamId(16), "telemetry", columns, Some("device"))?;
    let spec = StreamSpec {
        name: "telemetry".into(),
        topic: "dt/{site}/{device}/telemetry".into(),
        format: Format::Json,
        time: Some(TimeSpec { path: "ts".into(), unit: TimeUnit::Auto }),
        fields,
        captures: vec!["site".into(), "device".into()],
        infer: false,
        protobuf: None,
    };

    let options = LogOptions { retention_bytes: 256 << 20, ..LogOptions::default() };
    let schemas = vec![raw_schema(), dead_letters_schema(), downlink_schema(), schema.clone()];
    let log = Log::open(Path::new(&directory), options, schemas)?;
    let options =
        GatewayOptions { address: ([127, 0, 0, 1], port).into(), threads, ..GatewayOptions::default() };
    let gateway =
        Gateway::start(log.clone(), options, vec![StreamBinding { spec, schema: Arc::new(schema) }], vec![])?;
    println!("mqtt {}", gateway.address());

    std::io::stdin().read_to_end(&mut Vec::new())?;
    let latency = gateway.ack_latency();
    let events = gateway.events();
    let counters = gateway.stop(Duration::from_secs(10));
    for (name, value) in counters.each().filter(|(_, value)| *value > 0) {
        println!("{name:>20} {value}");
    }
    println!("{latency:?}\nimbalance {}\n{:?}", counters.imbalance(), log.stats());
    events.iter().for_each(|event| println!("{event:?}"));
    log.close();
    Ok(())
}
