//! Arrow batches to rows of the log, by column name.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, RecordBatch};
use arrow_schema::{DataType, TimeUnit};
use headwater_core::rows::{Cell, Rows};
use headwater_core::schema::{ColumnType, SchemaRef};

/// Rows of `schema` from a batch; columns that the batch lacks are NULL.
///
/// Errors: a column of the batch that the schema does not have, or of another type.
pub fn from_batch(schema: SchemaRef, batch: &RecordBatch) -> Result<Rows, String> {
    for field in batch.schema_ref().fields() {
        if !schema.columns.iter().any(|column| column.name == *field.name()) {
            return Err(format!("stream {:?} has no column {:?}", schema.name, field.name()));
        }
    }
    let mut columns = Vec::with_capacity(schema.columns.len());
    for column in &schema.columns {
        let array = batch.column_by_name(&column.name);
        if let Some(array) = array
            && !fits(array.data_type(), column.ty)
        {
            return Err(format!(
                "column {:?} of stream {:?} is {}, the batch has {}",
                column.name,
                schema.name,
                column.ty,
                array.data_type()
            ));
        }
        columns.push((column.ty, array));
    }
    let mut rows = Rows::new(schema.clone());
    for row in 0..batch.num_rows() {
        let cells = columns.iter().map(|(ty, array)| match array {
            Some(array) if !array.is_null(row) => cell(*ty, array, row),
            _ => Cell::Null,
        });
        rows.push(cells).map_err(|error| error.to_string())?;
    }
    Ok(rows)
}

fn fits(found: &DataType, ty: ColumnType) -> bool {
    match ty {
        ColumnType::Double => *found == DataType::Float64,
        ColumnType::Bigint => *found == DataType::Int64,
        ColumnType::Boolean => *found == DataType::Boolean,
        ColumnType::String => *found == DataType::Utf8,
        ColumnType::Binary => *found == DataType::Binary,
        ColumnType::Timestamp => matches!(found, DataType::Timestamp(TimeUnit::Microsecond, _)),
    }
}

fn cell<'a>(ty: ColumnType, array: &'a dyn Array, row: usize) -> Cell<'a> {
    match ty {
        ColumnType::Double => Cell::Double(array.as_primitive::<Float64Type>().value(row)),
        ColumnType::Bigint => Cell::Bigint(array.as_primitive::<Int64Type>().value(row)),
        ColumnType::Boolean => Cell::Boolean(array.as_boolean().value(row)),
        ColumnType::String => Cell::Bytes(array.as_string::<i32>().value(row).as_bytes()),
        ColumnType::Binary => Cell::Bytes(array.as_binary::<i32>().value(row)),
        ColumnType::Timestamp => Cell::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row)),
    }
}
