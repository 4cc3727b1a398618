#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| (peristyle_fuzzing::target("shard_root").expect("a listed target").run)(input));
