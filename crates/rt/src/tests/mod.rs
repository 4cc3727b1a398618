//! Tests of what both backends share. Those that need no system run under Miri too.

mod buf;
mod sync;
mod task;
mod timer;
