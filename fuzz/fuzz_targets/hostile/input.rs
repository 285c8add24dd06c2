//! Numbers made of the input's bytes; zeros once the input is used up.

pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, wanted: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(wanted.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A few bytes; the next byte is their number.
    pub fn some(&mut self) -> &'a [u8] {
        let count = self.u8();
        self.bytes(count.into())
    }

    /// A number that is often small, often near a limit, and sometimes any number.
    pub fn odd(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=0x9f => u64::from(small & 0x1f),
            power @ 0xa0..=0xdf => (1_u64 << (power & 0x3f)).wrapping_sub(u64::from(self.u8() & 1)),
            0xe0..=0xef => u64::from(self.u16()),
            _ => self.u64(),
        }
    }
}
