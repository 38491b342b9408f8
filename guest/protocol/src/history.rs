//! The history digest: `d_s = H(d_{s-1}, client, s, nonce_s)`.
//!
//! Guest and client compute the chain separately. Equal digests after request *s* mean that the
//! guest remembers every request up to *s*, in order, with the nonces that the client chose. It
//! guards against accidents (a guest that went back in time), not against a liar, so 64 bits of a
//! good mixer are enough.

/// The digest of a lane that was never opened.
pub const EMPTY: u64 = 0;

/// Mixes 64 bits into 64 bits, a bijection (the finalizer of SplitMix64, Steele et al. 2014).
#[inline(always)]
pub const fn mix64(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The digest after one more request.
pub const fn advance(digest: u64, client: u32, seq: u64, nonce: u64) -> u64 {
    let with_client = mix64(digest ^ 0x524f_4d55_4c55_5321 ^ ((client as u64) << 40));
    let with_seq = mix64(with_client.wrapping_add(seq).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mix64(with_seq ^ nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_request_changes_the_digest() {
        let base = advance(7, 1, 2, 3);
        for other in
            [advance(8, 1, 2, 3), advance(7, 2, 2, 3), advance(7, 1, 3, 3), advance(7, 1, 2, 4)]
        {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn golden() {
        assert_eq!(mix64(1), 0x5692_161d_100b_05e5);
        assert_eq!(advance(EMPTY, 3, 1, 7), 0x607c7437db5841fc);
    }
}
