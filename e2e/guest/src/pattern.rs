//! Bytes that identify their block, and show whether it is whole.

/// The unit of all writes to a disk.
pub const BLOCK_BYTES: usize = 4096;
const RECORD_BYTES: usize = 16;

/// Fills a block with its number and the pass that wrote it, over and over: no two halves of different blocks or passes
/// make a whole one. What was never written is zeros.
///
/// ```
/// use kiln_e2e_guest::pattern::{BLOCK_BYTES, check_block, fill_block};
///
/// let mut block = [0; BLOCK_BYTES];
/// check_block(&block, 7, 0).expect("was never written");
/// fill_block(&mut block, 7, 1);
/// check_block(&block, 7, 1).expect("is whole");
/// block[4000] ^= 1;
/// check_block(&block, 7, 1).expect_err("is torn");
/// ```
pub fn fill_block(block: &mut [u8], number: u64, pass: u64) {
    let record = record(number, pass);
    for part in block.chunks_exact_mut(RECORD_BYTES) {
        part.copy_from_slice(&record);
    }
}

/// Whether a block is what a pass wrote.
///
/// # Errors
/// What it has instead, and where.
pub fn check_block(block: &[u8], number: u64, pass: u64) -> Result<(), String> {
    let record = record(number, pass);
    match block.chunks_exact(RECORD_BYTES).position(|part| part != record) {
        None => Ok(()),
        Some(at) => {
            let at = at * RECORD_BYTES;
            let word = |from: usize| u64::from_le_bytes(block[from..from + 8].try_into().expect("eight bytes"));
            let found = (word(at), word(at + 8));
            Err(format!("block {number} of pass {pass} has block {} of pass {} at byte {at}", found.0, found.1))
        }
    }
}

fn record(number: u64, pass: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    if pass > 0 {
        record[..8].copy_from_slice(&number.to_le_bytes());
        record[8..].copy_from_slice(&pass.to_le_bytes());
    }
    record
}

/// Bytes of a stream, different in each round.
pub fn stream_bytes(bytes: usize, round: u64) -> Vec<u8> {
    let byte = |index: usize| (index as u64 ^ round).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    (0..bytes).map(byte).collect()
}
