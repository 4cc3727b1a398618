//! Tests of what both backends share. Those that need no system run under Miri too.

mod buf;
mod kept;
mod sync;
mod task;
mod timer;
