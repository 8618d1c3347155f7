//! Readings of formats that nest (CBOR, MessagePack, and JSON where fields are inferred): one walk over tokens.
//!
//! A format is a [`Source`]; what its values mean is the plan's and the sink's. Nothing is built but the row.

use std::borrow::Cow;

use super::decoded::Decoded;
use super::error::DecodeError;
use super::plan::{Node, StreamPlan, Target};
use super::sink::{Sink, Token};
use super::{MAX_DEPTH, extra};

/// A container whose head has been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub map: bool,
    /// Members to come, if the head told how many; else the format marks the end.
    pub left: Option<u64>,
    pub first: bool,
}

/// A format as a row of tokens: pure, and each call moves on or is an error, so that no payload can hold a walk.
pub(super) trait Source<'p> {
    /// Position of the next byte.
    fn at(&self) -> usize;
    /// The value at the cursor, a scalar whole, a container its head only.
    fn token(&mut self) -> Result<Token<'p>, DecodeError>;
    /// Whether the container has another member, whose key or value is next.
    fn next(&mut self, open: &mut Open) -> Result<bool, DecodeError>;
    /// The key at the cursor of a map; `None`: of a kind that no path can name.
    fn key(&mut self) -> Result<Option<Cow<'p, [u8]>>, DecodeError>;
    /// Nothing may follow.
    fn finish(&mut self) -> Result<(), DecodeError>;
}

impl Open {
    pub fn of(token: &Token<'_>) -> Option<Open> {
        match token {
            Token::Map(left) => Some(Open { map: true, left: *left, first: true }),
            Token::Array(left) => Some(Open { map: false, left: *left, first: true }),
            _ => None,
        }
    }

    /// For formats that count: one member less.
    pub fn count_down(&mut self) -> bool {
        match &mut self.left {
            Some(0) | None => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// Appends the readings of the payload to `into`, whose template has been filled.
pub(super) fn read<'p>(
    plan: &StreamPlan,
    source: &mut impl Source<'p>,
    into: &mut Decoded,
) -> Result<(), DecodeError> {
    let mut walk = Walk { source, sink: Sink::new(plan, into) };
    let mut fault = None;
    let at = walk.source.at();
    let token = walk.source.token()?;
    match Open::of(&token) {
        Some(mut open) if !open.map => {
            while walk.source.next(&mut open)? {
                let at = walk.source.at();
                let token = walk.source.token()?;
                walk.reading(token, at, 1, &mut fault)?;
            }
        }
        _ => walk.reading(token, at, 0, &mut fault)?,
    }
    walk.source.finish()?;
    fault.map_or(Ok(()), Err)
}

/// Reads over the value whose token was taken at `at`, where `depth` containers are open.
pub(super) fn skip<'p>(
    source: &mut impl Source<'p>,
    token: &Token<'_>,
    at: usize,
    depth: u32,
) -> Result<(), DecodeError> {
    let Some(mut open) = Open::of(token) else { return Ok(()) };
    if depth >= MAX_DEPTH {
        return Err(DecodeError::TooDeep { at });
    }
    while source.next(&mut open)? {
        if open.map {
            source.key()?;
        }
        let at = source.at();
        let token = source.token()?;
        skip(source, &token, at, depth + 1)?;
    }
    Ok(())
}

struct Walk<'a, 's, S> {
    source: &'s mut S,
    sink: Sink<'a>,
}

impl<'p, S: Source<'p>> Walk<'_, '_, S> {
    fn reading(
        &mut self,
        token: Token<'p>,
        at: usize,
        depth: u32,
        fault: &mut Option<DecodeError>,
    ) -> Result<(), DecodeError> {
        let Some(open) = Open::of(&token).filter(|open| open.map) else {
            skip(self.source, &token, at, depth)?;
            fault.get_or_insert(DecodeError::NotAnObject { at, found: token.kind() });
            return Ok(());
        };
        self.sink.begin()?;
        let plan = self.sink.plan;
        self.object(&plan.nodes[0], open, at, depth)?;
        extra::finish(&mut self.sink)?;
        self.sink.end(fault);
        Ok(())
    }

    /// Members of a map whose head, at `at`, has been read.
    fn object(&mut self, node: &Node, mut open: Open, at: usize, depth: u32) -> Result<(), DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(DecodeError::TooDeep { at });
        }
        while self.source.next(&mut open)? {
            let key = self.source.key()?;
            let at = self.source.at();
            let token = self.source.token()?;
            let target = key.as_ref().and_then(|key| node.targets.get(node.keys.find(key)?));
            match (target, key) {
                (Some(Target::Leaf(slot)), Some(key)) => {
                    self.leaves(node, &key, std::slice::from_ref(slot), token, at, depth + 1)?;
                }
                (Some(Target::Leaves(slots)), Some(key)) => {
                    self.leaves(node, &key, slots, token, at, depth + 1)?;
                }
                (Some(Target::Object(child)), Some(key)) => {
                    self.child(node, &key, *child, token, at, depth + 1)?;
                }
                (None, Some(key)) if self.sink.plan.extra.is_some() => {
                    extra::undeclared(self.source, &mut self.sink, &node.path, &key, token, at, depth + 1)?;
                }
                _ => skip(self.source, &token, at, depth + 1)?,
            }
        }
        Ok(())
    }

    fn leaves(
        &mut self,
        node: &Node,
        key: &[u8],
        slots: &[super::plan::Slot],
        token: Token<'p>,
        at: usize,
        depth: u32,
    ) -> Result<(), DecodeError> {
        let mut taken = true;
        for slot in slots {
            taken &= self.sink.put(*slot, at, &token);
        }
        if taken {
            return Ok(());
        }
        if self.sink.plan.extra.is_some() {
            return extra::keep(self.source, &mut self.sink, &node.path, key, token, at, depth);
        }
        skip(self.source, &token, at, depth)?;
        for slot in slots {
            self.sink.conflict(slot.column, at, slot.kind.wanted(), token.kind());
        }
        Ok(())
    }

    /// A declared nested object, or what stands in its place.
    fn child(
        &mut self,
        node: &Node,
        key: &[u8],
        child: usize,
        token: Token<'p>,
        at: usize,
        depth: u32,
    ) -> Result<(), DecodeError> {
        let plan = self.sink.plan;
        let below = &plan.nodes[child];
        for column in &below.beneath {
            self.sink.reset(*column);
        }
        match (Open::of(&token), &token) {
            (Some(open), _) if open.map => self.object(below, open, at, depth),
            (_, Token::Null) => Ok(()),
            _ if plan.extra.is_some() => {
                extra::keep(self.source, &mut self.sink, &node.path, key, token, at, depth)
            }
            _ => {
                skip(self.source, &token, at, depth)?;
                for column in &below.beneath {
                    self.sink.conflict(*column, at, "an object around it", token.kind());
                }
                Ok(())
            }
        }
    }
}
