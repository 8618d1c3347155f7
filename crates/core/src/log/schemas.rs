//! The schemas the log knows: every version that stored rows may carry, and the latest of each stream.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::LogError;
use crate::schema::{Schema, SchemaId, SchemaRef, StreamId};

#[derive(Default)]
pub struct Schemas {
    by_id: HashMap<SchemaId, SchemaRef>,
    latest: HashMap<StreamId, SchemaRef>,
}

/// Columns that a reader adds; a schema may not have them.
pub const RESERVED_COLUMNS: [&str; 3] = ["_key", "_partition", "_offset"];

impl Schemas {
    /// Registering the same schema again is fine. The latest of a stream is the one registered last.
    /// Refused: another schema under a known id, a column of another type than in an earlier version, a
    /// key that comes or goes, a column name that readers use.
    pub fn register(&mut self, schema: Schema) -> Result<SchemaRef, LogError> {
        if let Some(known) = self.by_id.get(&schema.id) {
            if **known == schema {
                let known = known.clone();
                self.latest.insert(schema.stream, known.clone());
                return Ok(known);
            }
            return Err(conflict(
                &schema,
                format!("the id belongs to another schema of stream {:?}", known.name),
            ));
        }
        for (at, column) in schema.columns.iter().enumerate() {
            if RESERVED_COLUMNS.contains(&column.name.as_str()) {
                return Err(conflict(&schema, format!("the log itself adds the column {:?}", column.name)));
            }
            if schema.columns[..at].iter().any(|other| other.name == column.name) {
                return Err(conflict(&schema, format!("it has two columns {:?}", column.name)));
            }
            for earlier in self.by_id.values().filter(|earlier| earlier.stream == schema.stream) {
                if let Some(other) = earlier.columns.iter().find(|other| other.name == column.name)
                    && other.ty != column.ty
                {
                    let why = format!(
                        "column {:?} is {} here and {} in schema {:?}; a declared column keeps its type",
                        column.name, column.ty, other.ty, earlier.id
                    );
                    return Err(conflict(&schema, why));
                }
            }
        }
        if let Some(latest) = self.latest.get(&schema.stream)
            && key_name(latest) != key_name(&schema)
        {
            let why = format!(
                "its key is {:?}, that of {:?} is {:?}",
                key_name(&schema),
                latest.id,
                key_name(latest)
            );
            return Err(conflict(&schema, why));
        }
        let schema = Arc::new(schema);
        self.by_id.insert(schema.id, schema.clone());
        self.latest.insert(schema.stream, schema.clone());
        Ok(schema)
    }

    pub fn get(&self, id: SchemaId) -> Result<&SchemaRef, LogError> {
        self.by_id.get(&id).ok_or(LogError::UnknownSchema(id))
    }

    pub fn latest(&self, stream: StreamId) -> Result<&SchemaRef, LogError> {
        self.latest.get(&stream).ok_or(LogError::UnknownStream(stream))
    }

    /// Rows may be written only with a registered schema, else they could not be read back.
    pub fn check(&self, schema: &SchemaRef) -> Result<(), LogError> {
        let known = self.get(schema.id)?;
        if Arc::ptr_eq(known, schema) || known == schema {
            return Ok(());
        }
        Err(conflict(schema, format!("the id belongs to another schema of stream {:?}", known.name)))
    }
}

fn conflict(schema: &Schema, why: String) -> LogError {
    LogError::SchemaConflict { id: schema.id, name: schema.name.clone(), why }
}

fn key_name(schema: &Schema) -> Option<&str> {
    schema.key.map(|at| schema.columns[at].name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, ColumnType};

    fn schema(id: u32, columns: &[(&str, ColumnType)], key: Option<&str>) -> Schema {
        let columns = columns.iter().map(|(name, ty)| Column { name: (*name).into(), ty: *ty }).collect();
        Schema::new(SchemaId(id), StreamId(16), "t", columns, key).unwrap()
    }

    #[test]
    fn a_later_version_may_add_columns() {
        let mut schemas = Schemas::default();
        schemas.register(schema(1, &[("a", ColumnType::Double)], None)).unwrap();
        schemas.register(schema(2, &[("b", ColumnType::String), ("a", ColumnType::Double)], None)).unwrap();
        assert_eq!(schemas.latest(StreamId(16)).unwrap().id, SchemaId(2));
        schemas.register(schema(1, &[("a", ColumnType::Double)], None)).unwrap();
        assert_eq!(schemas.latest(StreamId(16)).unwrap().id, SchemaId(1));
    }

    #[test]
    fn what_would_make_stored_rows_unreadable_is_refused() {
        let mut schemas = Schemas::default();
        schemas.register(schema(1, &[("a", ColumnType::Double)], None)).unwrap();
        let reason = |schemas: &mut Schemas, schema| schemas.register(schema).unwrap_err().to_string();
        assert!(
            reason(&mut schemas, schema(1, &[("a", ColumnType::Bigint)], None))
                .contains("belongs to another")
        );
        assert!(
            reason(&mut schemas, schema(2, &[("a", ColumnType::Bigint)], None)).contains("keeps its type")
        );
        assert!(
            reason(&mut schemas, schema(2, &[("_key", ColumnType::Bigint)], None)).contains("itself adds")
        );
        assert!(
            reason(&mut schemas, schema(2, &[("k", ColumnType::String)], Some("k"))).contains("its key is")
        );
        assert_eq!(schemas.get(SchemaId(9)), Err(LogError::UnknownSchema(SchemaId(9))));
    }
}
