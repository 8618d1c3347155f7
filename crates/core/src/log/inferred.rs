//! Fields that streams with `fields = "infer"` have been given by their messages, and the schemas made of them.
//!
//! The file `inferred` of the log's directory holds them. It is small and changes seldom (a stream gets at most
//! some hundred fields in its life), so each change writes it anew under another name, syncs it and renames it: it is
//! always whole. A schema's rows may be written only after that, so that every stored block can be read back.
//! Drawn in `docs/formats/log.md`.

use super::error::LogError;
use super::storage::Storage;
use super::varint::{Cursor, Malformed, put_varint};
use crate::schema::{Column, ColumnType, Schema, SchemaId, SchemaRef, StreamId};
use std::collections::BTreeMap;

const NAME: &str = "inferred";
const NEW: &str = "inferred.new";
const MAGIC: [u8; 8] = *b"HWloginf";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 20;

/// Schemas made here count from this id, those of the registry from 1. A signed 32-bit integer holds both.
const FIRST_ID: u32 = 1 << 30;

/// A field that messages have shown, and its column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferredField {
    /// The column's name.
    pub name: String,
    pub ty: ColumnType,
    /// Dotted path in the payload, as in a declaration.
    pub path: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct InferredStream {
    name: String,
    /// In the order in which they were first seen; only appended to.
    fields: Vec<InferredField>,
    versions: Vec<InferredVersion>,
}

/// Columns of a version: those of `base`, then the first `fields` fields.
#[derive(Debug, PartialEq, Eq)]
struct InferredVersion {
    id: SchemaId,
    base: Vec<Column>,
    key: Option<usize>,
    fields: usize,
}

#[derive(Debug, Default)]
pub struct Inferred {
    streams: BTreeMap<u16, InferredStream>,
}

impl Inferred {
    /// What the file holds; nothing if there is none.
    pub fn load(storage: &dyn Storage) -> Result<Inferred, LogError> {
        let file = match storage.open(NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Inferred::default()),
            Err(error) => return Err(LogError::io(format!("open {NAME}"), &error)),
        };
        let failed = |error: std::io::Error| LogError::io(format!("read {NAME}"), &error);
        let mut bytes = vec![0; file.size().map_err(failed)? as usize];
        let count = file.read_at(0, &mut bytes).map_err(failed)?;
        bytes.truncate(count);
        let damaged =
            |what: &str| LogError::corrupt(NAME, 0, format!("{what}; restore the file from a backup"));
        let mut cursor = Cursor::new(&bytes);
        let (Ok(magic), Ok(crc), Ok(version), Ok(_), Ok(length)) =
            (cursor.take(8), cursor.u32(), cursor.u16(), cursor.u16(), cursor.u32())
        else {
            return Err(damaged("it is shorter than its header"));
        };
        if magic != MAGIC {
            return Err(damaged("its magic is wrong"));
        }
        if version != VERSION {
            return Err(LogError::Version { file: NAME.into(), found: version, known: VERSION });
        }
        if bytes.len() != HEADER_BYTES + length as usize || crc != crc32c::crc32c(&bytes[12..]) {
            return Err(damaged("its length or CRC is wrong"));
        }
        Inferred::decode(&mut cursor).map_err(|error| damaged(&error.to_string()))
    }

    /// Fields of `stream` so far.
    pub fn fields(&self, stream: StreamId) -> &[InferredField] {
        self.streams.get(&stream.0).map_or(&[], |known| &known.fields)
    }

    /// Every version ever made, oldest first in each stream.
    pub fn schemas(&self) -> Result<Vec<Schema>, LogError> {
        let each = self.streams.iter().flat_map(|(id, known)| {
            known.versions.iter().map(move |version| known.schema(StreamId(*id), version))
        });
        each.collect()
    }

    /// Adds fields behind the columns of `current`, which ends with all fields known before, durably.
    ///
    /// On an error nothing has changed.
    pub fn add(
        &mut self,
        storage: &dyn Storage,
        current: &Schema,
        new: &[InferredField],
    ) -> Result<Schema, LogError> {
        let next = self.streams.values().flat_map(|known| &known.versions).map(|version| version.id.0 + 1);
        let id = SchemaId(next.max().unwrap_or(FIRST_ID));
        let known = self.streams.entry(current.stream.0).or_default();
        let fields = known.fields.len();
        let Some(base) = current.columns.len().checked_sub(fields).filter(|base| {
            let names = current.columns[*base..].iter().map(|column| &column.name);
            names.eq(known.fields.iter().map(|field| &field.name))
        }) else {
            return Err(LogError::Invalid(format!(
                "the columns of schema {:?} of stream {:?} do not end with the {fields} fields inferred so far",
                current.id, current.name
            )));
        };
        known.name.clone_from(&current.name);
        known.fields.extend_from_slice(new);
        known.versions.push(InferredVersion {
            id,
            base: current.columns[..base].to_vec(),
            key: current.key,
            fields: known.fields.len(),
        });
        let written = self.write(storage);
        let undo = written.is_err();
        let known = self.streams.entry(current.stream.0).or_default();
        if undo {
            known.fields.truncate(fields);
            known.versions.pop();
        }
        written.map_err(|error| LogError::io(format!("write {NAME}"), &error))?;
        match known.versions.last() {
            Some(version) => known.schema(current.stream, version),
            None => Err(LogError::UnknownStream(current.stream)),
        }
    }

    fn write(&self, storage: &dyn Storage) -> std::io::Result<()> {
        let bytes = self.encode();
        let file = storage.create(NEW)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        storage.rename(NEW, NAME)?;
        storage.sync_directory()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        put_varint(&mut out, self.streams.len() as u64);
        for (id, stream) in &self.streams {
            put_varint(&mut out, u64::from(*id));
            put_text(&mut out, &stream.name);
            put_varint(&mut out, stream.fields.len() as u64);
            for field in &stream.fields {
                out.push(field.ty as u8);
                put_text(&mut out, &field.name);
                put_text(&mut out, &field.path);
            }
            put_varint(&mut out, stream.versions.len() as u64);
            for version in &stream.versions {
                put_varint(&mut out, u64::from(version.id.0));
                put_varint(&mut out, version.fields as u64);
                put_varint(&mut out, version.key.map_or(0, |at| at as u64 + 1));
                put_varint(&mut out, version.base.len() as u64);
                for column in &version.base {
                    out.push(column.ty as u8);
                    put_text(&mut out, &column.name);
                }
            }
        }
        let length = (out.len() - HEADER_BYTES) as u32;
        out[..8].copy_from_slice(&MAGIC);
        out[12..14].copy_from_slice(&VERSION.to_le_bytes());
        out[16..20].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Inferred, Malformed> {
        let mut streams = BTreeMap::new();
        for _ in 0..cursor.varint()? {
            let id = cursor.narrow()?;
            let mut stream = InferredStream { name: take_text(cursor)?, ..InferredStream::default() };
            for _ in 0..cursor.varint()? {
                let ty = take_type(cursor)?;
                stream.fields.push(InferredField { ty, name: take_text(cursor)?, path: take_text(cursor)? });
            }
            for _ in 0..cursor.varint()? {
                let (id, fields, key) =
                    (SchemaId(cursor.narrow()?), cursor.narrow()?, cursor.narrow::<u32>()?);
                let key = key.checked_sub(1).map(|at| at as usize);
                let mut base = Vec::new();
                for _ in 0..cursor.varint()? {
                    let ty = take_type(cursor)?;
                    base.push(Column { name: take_text(cursor)?, ty });
                }
                if fields > stream.fields.len() || key.is_some_and(|at| at >= base.len()) {
                    return Err(Malformed("a version names fields that are not there"));
                }
                stream.versions.push(InferredVersion { id, base, key, fields });
            }
            streams.insert(id, stream);
        }
        if cursor.is_empty() {
            Ok(Inferred { streams })
        } else {
            Err(Malformed("bytes follow the last stream"))
        }
    }
}

impl InferredStream {
    fn schema(&self, stream: StreamId, version: &InferredVersion) -> Result<Schema, LogError> {
        let added = self.fields.iter().take(version.fields);
        let added = added.map(|field| Column { name: field.name.clone(), ty: field.ty });
        let columns: Vec<Column> = version.base.iter().cloned().chain(added).collect();
        let key = version.key.map(|at| columns[at].name.clone());
        Schema::new(version.id, stream, &self.name, columns, key.as_deref()).map_err(LogError::Invalid)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(cursor: &mut Cursor<'_>) -> Result<String, Malformed> {
    let length = cursor.narrow()?;
    let text = std::str::from_utf8(cursor.take(length)?);
    text.map(str::to_owned).map_err(|_| Malformed("a name is not UTF-8"))
}

fn take_type(cursor: &mut Cursor<'_>) -> Result<ColumnType, Malformed> {
    ColumnType::from_code(cursor.u8()?).ok_or(Malformed("a column has an unknown type"))
}

impl super::Log {
    /// Fields that messages of `stream` have shown so far, in the order of their columns, and the schema that has them.
    pub fn inferred(&self, stream: StreamId) -> Result<(Vec<InferredField>, SchemaRef), LogError> {
        let shared = self.shared();
        let inferred = shared.inferred.lock();
        let latest = shared.schemas.read().latest(stream)?.clone();
        Ok((inferred.fields(stream).to_vec(), latest))
    }

    /// Gives the stream of `current` further columns and returns the schema that has them, durable and registered.
    ///
    /// current: ends with the columns of all fields inferred before, in their order
    /// Errors: `Invalid` if it does not, as when another thread was faster; `Io`, `DiskFull`.
    pub fn infer(&self, current: &Schema, new: &[InferredField]) -> Result<SchemaRef, LogError> {
        let shared = self.shared();
        let mut inferred = shared.inferred.lock();
        let schema = inferred.add(&*shared.storage, current, new)?;
        shared.schemas.write().register(schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::forgetful::Forgetful;

    fn base() -> Schema {
        let column = |name: &str, ty| Column { name: name.into(), ty };
        let columns = vec![column("device", ColumnType::String), column("ts", ColumnType::Timestamp)];
        Schema::new(SchemaId(16), StreamId(16), "t", columns, Some("device")).unwrap()
    }

    fn field(name: &str) -> InferredField {
        InferredField { name: name.into(), ty: ColumnType::Double, path: format!("radio.{name}") }
    }

    #[test]
    fn what_was_added_is_there_when_loaded_again() {
        let storage = Forgetful::new();
        let mut inferred = Inferred::load(&storage).unwrap();
        let first = inferred.add(&storage, &base(), &[field("a"), field("b")]).unwrap();
        let second = inferred.add(&storage, &first, &[field("c")]).unwrap();
        assert_eq!((first.id, second.id), (SchemaId(FIRST_ID), SchemaId(FIRST_ID + 1)));
        assert_eq!(second.columns.len(), 5);
        let again = Inferred::load(&storage).unwrap();
        assert_eq!(again.fields(StreamId(16)), [field("a"), field("b"), field("c")]);
        assert_eq!(again.schemas().unwrap(), [first, second]);
        assert!(again.fields(StreamId(17)).is_empty());
    }

    #[test]
    fn a_schema_that_lacks_known_fields_is_refused() {
        let storage = Forgetful::new();
        let mut inferred = Inferred::default();
        inferred.add(&storage, &base(), &[field("a")]).unwrap();
        let error = inferred.add(&storage, &base(), &[field("b")]).unwrap_err();
        assert!(error.to_string().contains("do not end with the 1 fields"), "{error}");
        assert_eq!(Inferred::load(&storage).unwrap().fields(StreamId(16)), [field("a")]);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let storage = Forgetful::new();
        Inferred::default().add(&storage, &base(), &[field("a"), field("b")]).unwrap();
        let file = storage.open(NAME).unwrap();
        let mut bytes = vec![0; file.size().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        for at in 0..bytes.len() {
            file.write_at(at as u64, &[bytes[at] ^ 0x10]).unwrap();
            Inferred::load(&storage).unwrap_err();
            file.write_at(at as u64, &bytes[at..=at]).unwrap();
        }
        Inferred::load(&storage).unwrap();
    }
}
