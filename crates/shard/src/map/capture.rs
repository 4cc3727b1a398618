//! What a checkpoint takes of the map, and what recovery puts back.

use super::{Block256, FANOUT, Leaf, Lookup, Map, Node, mark_page};
use peristyle_base::LayerId;

/// One thing that a checkpoint has to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Captured {
    pub layer: LayerId,
    /// Page number within the layer.
    pub page: u32,
    /// Child of the page; `None`: the whole page became zero or absent.
    pub child: Option<u8>,
    pub state: CapturedState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CapturedState {
    Absent,
    Zero,
    /// Handle for [`Map::leaf`] and [`Map::release`].
    Leaf(u32),
}

impl Map {
    /// Everything that changed since the last capture, as it is now, in order of layer and block. Leaves stay
    /// readable through [`leaf`](Self::leaf) until [`release`](Self::release).
    pub fn capture(&mut self, out: &mut Vec<Captured>) {
        for (&id, layer) in &mut self.layers {
            layer.dirty_pages.sort_unstable();
            for page in layer.dirty_pages.drain(..) {
                layer.is_dirty[page as usize] = false;
                let entry = |child, state| Captured { layer: id, page, child, state };
                let at = match layer.pages[page as usize] {
                    Node::Absent => {
                        out.push(entry(None, CapturedState::Absent));
                        continue;
                    }
                    Node::Zero => {
                        out.push(entry(None, CapturedState::Zero));
                        continue;
                    }
                    Node::At(at) => &mut self.pages[at as usize],
                };
                for child in 0..FANOUT {
                    if at.dirty[child / 64] >> (child % 64) & 1 == 0 {
                        continue;
                    }
                    let state = match at.children[child] {
                        Node::Absent => CapturedState::Absent,
                        Node::Zero => CapturedState::Zero,
                        Node::At(leaf) => {
                            let l = &mut self.leaves[leaf as usize];
                            assert!(!l.frozen, "one checkpoint at a time");
                            (l.dirty, l.frozen) = (false, true);
                            CapturedState::Leaf(leaf)
                        }
                    };
                    out.push(entry(Some(child as u8), state));
                }
                at.dirty = [0; FANOUT / 64];
            }
        }
    }

    /// The next checkpoint writes the leaf, and so its page, again.
    pub fn touch(&mut self, layer: LayerId, page: u32, child: u8) {
        let Some(layer) = self.layers.get_mut(&layer) else { return };
        if let Some(&Node::At(at)) = layer.pages.get(page as usize) {
            mark_page(layer, page as usize);
            self.pages[at as usize].dirty[child as usize / 64] |= 1 << (child % 64);
        }
    }

    /// A captured leaf as it was at the capture.
    pub fn leaf(&self, handle: u32) -> &Block256 {
        &self.leaves[handle as usize].ptrs
    }

    /// The checkpoint needs the captured leaf no more.
    pub fn release(&mut self, handle: u32) {
        let leaf = &mut self.leaves[handle as usize];
        assert!(leaf.frozen, "released twice");
        leaf.frozen = false;
        if leaf.orphan {
            leaf.orphan = false;
            self.free_leaves.push(handle);
        }
    }

    /// A checkpoint failed: what it had captured is dirty again.
    pub fn recapture(&mut self, captured: &[Captured]) {
        for c in captured {
            let Some(layer) = self.layers.get_mut(&c.layer) else { continue };
            if c.page as usize >= layer.pages.len() {
                continue;
            }
            mark_page(layer, c.page as usize);
            if let (Some(child), Node::At(at)) = (c.child, layer.pages[c.page as usize]) {
                self.pages[at as usize].dirty[child as usize / 64] |= 1 << (child % 64);
            }
        }
    }

    /// Recovery: a page that a checkpoint recorded as zero.
    pub fn load_zero_page(&mut self, layer: LayerId, page: u32) {
        if let Some(node) = self.layers.get_mut(&layer).and_then(|l| l.pages.get_mut(page as usize)) {
            *node = Node::Zero;
        }
    }

    /// Recovery: a child that a checkpoint recorded. Not dirty.
    pub fn load_child(&mut self, layer: LayerId, page: u32, child: u8, content: Option<Box<Block256>>) {
        if self.layers.get(&layer).is_none_or(|l| page as usize >= l.pages.len()) {
            return;
        }
        let node = match content {
            None => Node::Zero,
            Some(ptrs) => {
                self.mapped += ptrs.iter().filter(|p| matches!(p.lookup(), Lookup::Data(_))).count() as u64;
                self.leaves.push(Leaf { ptrs, dirty: false, frozen: false, orphan: false });
                Node::At(self.leaves.len() as u32 - 1)
            }
        };
        let at = self.page_for_change(layer, page as usize) as usize;
        self.pages[at].children[child as usize] = node;
        let l = self.layers.get_mut(&layer).expect("just seen");
        l.is_dirty[page as usize] = false;
        l.dirty_pages.retain(|&p| p != page);
        self.pages[at].dirty = [0; FANOUT / 64];
    }
}
