//! Observers' states as bytes, little-endian: a length before whatever has one.

use crate::ranges::State;

#[derive(Default)]
pub(super) struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    pub fn number(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    pub fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub fn state(&mut self, state: &State) {
        for values in [&state.min, &state.max, &state.counts] {
            self.number(values.len() as u64);
            self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}

/// What is left to read. Where a call gives `None`, the bytes are no such thing.
pub(super) struct Reader<'a> {
    pub bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    pub fn number(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    pub fn state(&mut self) -> Option<State> {
        let mut values = || {
            let count = usize::try_from(self.number()?).ok()?;
            let (values, _) = self.take(count.checked_mul(4)?)?.as_chunks();
            Some(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        };
        Some(State { min: values()?, max: values()?, counts: values()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let state = State { min: vec![-1.5, f32::MIN_POSITIVE], max: vec![f32::INFINITY, 0.1], counts: vec![3.0] };
        let mut writer = Writer::default();
        writer.text("a._observer_0");
        writer.state(&state);
        writer.number(7);
        let mut reader = Reader { bytes: &writer.bytes };
        assert_eq!(reader.text(), Some("a._observer_0"));
        assert_eq!(reader.state(), Some(state));
        assert_eq!(reader.number(), Some(7));
        assert!(reader.bytes.is_empty() && reader.number().is_none());
    }

    #[test]
    fn what_is_cut_off_is_no_state() {
        let mut writer = Writer::default();
        writer.state(&State { min: vec![1.0; 3], max: vec![2.0; 3], counts: vec![] });
        for length in 0..writer.bytes.len() {
            assert!(Reader { bytes: &writer.bytes[..length] }.state().is_none());
        }
        assert!(Reader { bytes: &u64::MAX.to_le_bytes() }.state().is_none());
    }
}
