//! GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d), of which 2 is a generator: the field of
//! RAID-6 and of ISA-L. Elements are plain bytes; addition is XOR.

/// 2^i for i in 0..255, twice over, so that the sum of two logarithms needs no reduction.
const EXP: [u8; 510] = {
    let (mut table, mut x, mut i) = ([0u8; 510], 1u16, 0);
    while i < 255 {
        table[i] = x as u8;
        table[i + 255] = x as u8;
        x = (x << 1) ^ if x & 0x80 != 0 { 0x11d } else { 0 };
        i += 1;
    }
    table
};

/// Logarithms to base 2; the entry of 0 is unused.
const LOG: [u8; 256] = {
    let (mut table, mut i) = ([0u8; 256], 0);
    while i < 255 {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
};

pub const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 { 0 } else { EXP[LOG[a as usize] as usize + LOG[b as usize] as usize] }
}

/// 2 to the power `n`.
pub const fn exp(n: usize) -> u8 {
    EXP[n % 255]
}

/// The multiplicative inverse; `None` for 0.
pub const fn inverse(a: u8) -> Option<u8> {
    if a == 0 { None } else { Some(EXP[255 - LOG[a as usize] as usize]) }
}

/// For each constant the products with 0..=15 and with the multiples of 16: what a byte shuffle needs.
pub(crate) const NIBBLES: [[u8; 32]; 256] = {
    let (mut table, mut c) = ([[0u8; 32]; 256], 0);
    while c < 256 {
        let mut n = 0;
        while n < 16 {
            table[c][n] = mul(c as u8, n as u8);
            table[c][16 + n] = mul(c as u8, (n << 4) as u8);
            n += 1;
        }
        c += 1;
    }
    table
};

/// For each constant the 8x8 bit matrix of multiplication by it, as `GF2P8AFFINEQB` wants it: byte `7 - i`
/// holds the row that yields bit `i` of the product.
pub(crate) const MATRICES: [u64; 256] = {
    let (mut table, mut c) = ([0u64; 256], 0);
    while c < 256 {
        let (mut matrix, mut column) = (0u64, 0);
        while column < 8 {
            let product = mul(c as u8, 1 << column);
            let mut bit = 0;
            while bit < 8 {
                if product >> bit & 1 != 0 {
                    matrix |= 1 << ((7 - bit) * 8 + column);
                }
                bit += 1;
            }
            column += 1;
        }
        table[c] = matrix;
        c += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication as school teaches it: shift, add, reduce.
    fn mul_slowly(a: u8, b: u8) -> u8 {
        let mut product = 0u16;
        for bit in 0..8 {
            if b >> bit & 1 != 0 {
                product ^= (a as u16) << bit;
            }
        }
        for bit in (8..15).rev() {
            if product >> bit & 1 != 0 {
                product ^= 0x11d << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn all_products_are_those_of_polynomials_modulo_0x11d() {
        for a in 0..=255 {
            for b in 0..=255 {
                let product = mul_slowly(a, b);
                assert_eq!(mul(a, b), product);
                let table = &NIBBLES[a as usize];
                assert_eq!(table[b as usize & 15] ^ table[16 + (b as usize >> 4)], product);
                let rows = MATRICES[a as usize].to_be_bytes();
                let by_matrix = (0..8).fold(0, |x, i| x | (((rows[i] & b).count_ones() & 1) as u8) << i);
                assert_eq!(by_matrix, product);
            }
        }
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        assert_eq!(inverse(0), None);
        assert!((1..=255).all(|a| inverse(a).is_some_and(|b| mul(a, b) == 1)));
    }
}
