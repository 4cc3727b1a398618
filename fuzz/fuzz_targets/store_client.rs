#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| (peristyle_fuzzing::target("store_client").expect("a listed target").run)(input));
