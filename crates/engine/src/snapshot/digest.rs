//! The checksum of a file that is mostly holes. Holes are hashed as zeros without being read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::memory::data_extents;

/// Bytes that are read and hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The blake3 of a file's contents, as hex digits. Fails if the file becomes shorter meanwhile.
pub(super) fn digest(file: &File) -> io::Result<String> {
    let bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let (mut buffer, zeros) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut place = 0;
    for extent in data_extents(file, bytes) {
        let extent = extent?;
        hash_zeros(&mut hasher, &zeros, extent.start - place);
        place = extent.start;
        while place < extent.end {
            let chunk = &mut buffer[..(extent.end - place).min(CHUNK_BYTES as u64) as usize];
            file.read_exact_at(chunk, place)?;
            hasher.update(chunk);
            place += chunk.len() as u64;
        }
    }
    hash_zeros(&mut hasher, &zeros, bytes - place);
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_zeros(hasher: &mut blake3::Hasher, zeros: &[u8], mut bytes: u64) {
    while bytes > 0 {
        let chunk = bytes.min(zeros.len() as u64);
        hasher.update(&zeros[..chunk as usize]);
        bytes -= chunk;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_hashed_as_the_zeros_that_they_read_as() {
        let file = tempfile::tempfile().expect("a file");
        let check = |what: &str| {
            let mut contents = vec![0; file.metadata().expect("facts").len() as usize];
            file.read_exact_at(&mut contents, 0).expect("reads");
            assert_eq!(digest(&file).expect("hashes"), blake3::hash(&contents).to_hex().to_string(), "{what}");
        };
        check("empty");
        file.write_all_at(b"start", 0).expect("written");
        check("without holes");
        file.set_len(3 << 20).expect("longer");
        check("with a hole at the end");
        file.write_all_at(b"middle", (1 << 20) + 5).expect("written");
        check("with holes around");
        file.set_len((5 << 20) + 77).expect("longer");
        file.write_all_at(b"end", (5 << 20) + 74).expect("written");
        check("of an odd length");
    }
}
