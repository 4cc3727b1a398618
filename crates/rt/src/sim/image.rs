//! Contents of a simulated disk: pages of 4096 bytes, shared between images until one of them writes.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

pub const SECTOR_BYTES: usize = 512;
pub const PAGE_BYTES: usize = 4096;
pub const SECTORS_PER_PAGE: usize = PAGE_BYTES / SECTOR_BYTES;
/// Pages that are copied (by reference) when a shared image is written: a crash state changes a few.
const CHUNK_PAGES: usize = 64;

/// `None` is a page of zeros.
pub(crate) type Page = Option<Rc<PageBytes>>;

/// What a page holds. It never changes: a page that is written is another one.
pub(crate) struct PageBytes {
    bytes: [u8; PAGE_BYTES],
    /// Of [`PageBytes::sum`], once somebody has asked: thousands of crash states share a page.
    sum: Cell<Option<u64>>,
}

impl PageBytes {
    pub fn new(bytes: [u8; PAGE_BYTES]) -> Rc<PageBytes> {
        Rc::new(PageBytes { bytes, sum: Cell::new(None) })
    }

    /// Equal for equal bytes.
    fn sum(&self) -> u64 {
        self.sum.get().unwrap_or_else(|| {
            let sum = sum_of(&self.bytes);
            self.sum.set(Some(sum));
            sum
        })
    }
}

impl Deref for PageBytes {
    type Target = [u8; PAGE_BYTES];
    fn deref(&self) -> &[u8; PAGE_BYTES] {
        &self.bytes
    }
}

/// No checksum that a disk's contents carry themselves: what ends in its own CRC has the same CRC whatever it says.
fn sum_of(bytes: &[u8; PAGE_BYTES]) -> u64 {
    // Lanes that do not wait for one another.
    let mut lanes = [1u64, 2, 3, 4];
    for words in bytes.chunks_exact(8 * lanes.len()) {
        for (lane, word) in lanes.iter_mut().zip(words.chunks_exact(8)) {
            *lane = mix(*lane, u64::from_le_bytes(word.try_into().expect("8 bytes")));
        }
    }
    lanes.into_iter().fold(0, mix)
}

#[derive(Clone)]
struct Chunk {
    pages: [Page; CHUNK_PAGES],
}

/// A sparse disk image. Cloning copies a short list of references.
#[derive(Clone)]
pub struct Image {
    bytes: u64,
    chunks: Vec<Option<Rc<Chunk>>>,
}

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

pub(crate) fn page_bytes(page: &Page) -> &[u8; PAGE_BYTES] {
    page.as_deref().map_or(&ZEROS, |page| &page.bytes)
}

pub(crate) fn sector_of(page: &Page, sector: usize) -> &[u8] {
    &page_bytes(page)[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]
}

pub(super) fn mix(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95)
}

/// Without looking at the bytes: pages that are not told to be the same may still be equal.
pub(crate) fn is_same(a: &Page, b: &Page) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Rc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl Image {
    /// An image of zeros.
    pub fn new(bytes: u64) -> Image {
        let chunks = bytes.div_ceil((CHUNK_PAGES * PAGE_BYTES) as u64) as usize;
        Image { bytes, chunks: vec![None; chunks] }
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    pub fn pages(&self) -> u64 {
        self.bytes / PAGE_BYTES as u64
    }

    pub(crate) fn page(&self, number: u64) -> &Page {
        let (chunk, index) = (number as usize / CHUNK_PAGES, number as usize % CHUNK_PAGES);
        match &self.chunks[chunk] {
            Some(chunk) => &chunk.pages[index],
            None => &None,
        }
    }

    pub(crate) fn set_page(&mut self, number: u64, page: Page) {
        let (chunk, index) = (number as usize / CHUNK_PAGES, number as usize % CHUNK_PAGES);
        let slot = &mut self.chunks[chunk];
        if slot.is_none() {
            if page.is_none() {
                return;
            }
            *slot = Some(Rc::new(Chunk { pages: [const { None }; CHUNK_PAGES] }));
        }
        Rc::make_mut(slot.as_mut().expect("just filled")).pages[index] = page;
    }

    /// Copies one sector of `from` over the same sector of page `number`.
    pub(crate) fn set_sector(&mut self, number: u64, sector: usize, from: &Page) {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        let mut page = *page_bytes(self.page(number));
        page[range.clone()].copy_from_slice(&page_bytes(from)[range]);
        // Many crash states that are kept for later differ in a few pages only, however many were undecided.
        let same = page == *page_bytes(from);
        self.set_page(number, if same { from.clone() } else { Some(PageBytes::new(page)) });
    }

    /// Reads any range.
    /// # Panics — beyond the end.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(offset + into.len() as u64 <= self.bytes, "beyond the end of the image");
        let mut done = 0;
        while done < into.len() {
            let at = offset + done as u64;
            let (number, start) = (at / PAGE_BYTES as u64, at as usize % PAGE_BYTES);
            let n = (PAGE_BYTES - start).min(into.len() - done);
            into[done..done + n].copy_from_slice(&page_bytes(self.page(number))[start..start + n]);
            done += n;
        }
    }

    /// Writes any range.
    /// # Panics — beyond the end.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.bytes, "beyond the end of the image");
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (number, start) = (at / PAGE_BYTES as u64, at as usize % PAGE_BYTES);
            let n = (PAGE_BYTES - start).min(bytes.len() - done);
            let mut page = *page_bytes(self.page(number));
            page[start..start + n].copy_from_slice(&bytes[done..done + n]);
            self.set_page(number, Some(PageBytes::new(page)));
            done += n;
        }
    }

    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read(offset, &mut byte);
        byte[0] ^= 1 << (bit & 7);
        self.write(offset, &byte);
    }

    /// Offset of the first byte in which the two differ.
    pub fn first_difference(&self, other: &Image) -> Option<u64> {
        assert_eq!(self.bytes, other.bytes);
        for (number, (a, b)) in self.chunks.iter().zip(&other.chunks).enumerate() {
            let same = match (a, b) {
                (Some(a), Some(b)) => Rc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            };
            if same {
                continue;
            }
            let first = number * CHUNK_PAGES;
            let last = (first + CHUNK_PAGES).min(self.pages() as usize);
            for page in first as u64..last as u64 {
                let (a, b) = (page_bytes(self.page(page)), page_bytes(other.page(page)));
                if let Some(at) = (a != b).then(|| a.iter().zip(b).position(|(x, y)| x != y)).flatten() {
                    return Some(page * PAGE_BYTES as u64 + at as u64);
                }
            }
        }
        None
    }

    /// A hash over all pages that differ from those of `base`: equal for images with equal contents.
    pub fn fingerprint_since(&self, base: &Image) -> u64 {
        let (mut sum, zeros) = (0u64, sum_of(&ZEROS));
        for (number, (mine, old)) in self.chunks.iter().zip(&base.chunks).enumerate() {
            if let (Some(a), Some(b)) = (mine, old)
                && Rc::ptr_eq(a, b)
            {
                continue;
            }
            let Some(mine) = mine else { continue };
            for (index, page) in mine.pages.iter().enumerate() {
                let before = old.as_ref().and_then(|c| c.pages[index].as_ref());
                let same = match (page, before) {
                    (Some(a), Some(b)) => Rc::ptr_eq(a, b) || a.sum() == b.sum(),
                    (Some(a), None) | (None, Some(a)) => a.sum() == zeros,
                    (None, None) => true,
                };
                if !same {
                    let page = page.as_ref().map_or(zeros, |page| page.sum());
                    sum = mix(mix(sum, (number * CHUNK_PAGES + index) as u64), page);
                }
            }
        }
        sum
    }

    /// Pages that hold something (zeros that were written count).
    pub fn pages_used(&self) -> u64 {
        self.chunks.iter().flatten().map(|c| c.pages.iter().flatten().count() as u64).sum()
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes, {} pages used)", self.bytes, self.pages_used())
    }
}
