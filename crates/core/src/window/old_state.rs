//! Snapshots of aligned windows as earlier versions wrote them; drawn in docs/formats/window-state.md.

use super::aligned::AlignedWindows;
use super::grid::Shape;
use super::layout::{Aggregate, InputType};
use super::state::{NO_INPUT, Reader, StateError, code, put_inputs, read_window};

impl AlignedWindows {
    pub(super) fn read_version_2(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        self.read_query(from)?;
        for _ in 0..from.u32()? {
            let slot = self.read_pane_number(from)?;
            let records = from.u32()?;
            self.read_records(slot, records, from)?;
        }
        for _ in 0..from.u32()? {
            let number = from.i64()?;
            if self.windows.last_key_value().is_some_and(|(last, _)| *last >= number) {
                return from.contradiction();
            }
            let emitted = from.u64()?;
            let (amended, revisions) = (from.u32()?, from.u32()?);
            let window = read_window(emitted, amended, revisions, from)?;
            self.windows.insert(number, window);
        }
        Ok(())
    }

    fn read_pane_number(&mut self, from: &mut Reader<'_>) -> Result<usize, StateError> {
        let number = from.i64()?;
        if self.panes.by_number.last_key_value().is_some_and(|(last, _)| *last >= number) {
            return from.contradiction();
        }
        Ok(self.panes.insert(number))
    }

    /// A pane of version 1 holds what has come out of it, too.
    pub(super) fn read_version_1(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        let Shape::Tumble { size_us } = self.options.shape else { return from.other_query() };
        let mut query = Vec::from(size_us.to_le_bytes());
        put_aggregates_1(&self.options.aggregates, &self.options.inputs, &mut query);
        from.expect(&query)?;
        self.forgotten_us = from.i64()?;
        for _ in 0..from.u32()? {
            let slot = self.read_pane_number(from)?;
            let number = self.panes.by_number.last_key_value().map_or(0, |(number, _)| *number);
            let emitted = from.u64()?;
            let (records, amended, revisions) = (from.u32()?, from.u32()?, from.u32()?);
            self.read_records(slot, records, from)?;
            let window = read_window(emitted, amended, revisions, from)?;
            if emitted > 0 || amended + revisions > 0 {
                self.windows.insert(number, window);
            }
        }
        Ok(())
    }
}

/// As version 1 had them, without parameters.
fn put_aggregates_1(aggregates: &[Aggregate], inputs: &[InputType], to: &mut Vec<u8>) {
    to.extend_from_slice(&(aggregates.len() as u16).to_le_bytes());
    to.extend_from_slice(&(inputs.len() as u16).to_le_bytes());
    for Aggregate { function, input } in aggregates {
        to.extend_from_slice(&code(*function).to_le_bytes());
        to.extend_from_slice(&input.map_or(NO_INPUT, |input| input as u16).to_le_bytes());
    }
    put_inputs(inputs, to);
}
