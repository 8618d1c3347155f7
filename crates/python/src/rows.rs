//! Arrow batches to rows of the log, by column name, and back.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow_schema::{DataType, Field, TimeUnit};
use headwater_core::rows::{Cell, ColumnRows, Rows, Values};
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

/// The rows as an Arrow batch with the schema's columns.
pub fn to_batch(rows: &Rows) -> Result<RecordBatch, String> {
    let mut fields = Vec::with_capacity(rows.columns.len());
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(rows.columns.len());
    for (declared, column) in rows.schema.columns.iter().zip(&rows.columns) {
        let array: ArrayRef = match (&column.values, declared.ty) {
            (Values::Double(values), _) => Arc::new(nullable(values, column).collect::<Float64Array>()),
            (Values::Int(values), ColumnType::Timestamp) => {
                let array: TimestampMicrosecondArray = nullable(values, column).collect();
                Arc::new(array.with_timezone("UTC"))
            }
            (Values::Int(values), _) => Arc::new(nullable(values, column).collect::<Int64Array>()),
            (Values::Boolean(values), _) => Arc::new(nullable(values, column).collect::<BooleanArray>()),
            (Values::Bytes { .. }, ColumnType::Binary) => {
                let row = |row| column.is_valid(row).then(|| column.bytes(row));
                Arc::new((0..rows.len()).map(row).collect::<BinaryArray>())
            }
            (Values::Bytes { .. }, _) => {
                let row = |row| column.is_valid(row).then(|| String::from_utf8_lossy(column.bytes(row)));
                Arc::new((0..rows.len()).map(row).collect::<StringArray>())
            }
        };
        fields.push(Field::new(&declared.name, array.data_type().clone(), true));
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(arrow_schema::Schema::new(fields)), arrays)
        .map_err(|error| error.to_string())
}

fn nullable<'a, T: Copy>(values: &'a [T], column: &'a ColumnRows) -> impl Iterator<Item = Option<T>> + 'a {
    values.iter().enumerate().map(|(row, value)| column.is_valid(row).then_some(*value))
}
