//! What is committed in `fuzz/corpus` does no harm, and neither do some changes of it; and every target is reachable
//! from both runners.

use peristyle_fuzzing::mutate::{Random, mutate};
use peristyle_fuzzing::run::execute;
use peristyle_fuzzing::{TARGETS, corpus};

#[test]
fn committed_inputs_and_some_changes_of_them_do_no_harm() {
    for target in TARGETS {
        let inputs = corpus::read(target).unwrap();
        for input in &inputs {
            execute(target, input).unwrap();
        }
        let (mut random, mut input) = (Random::new(1), Vec::new());
        for _ in 0..2_000 {
            mutate(&mut random, &inputs, target.bytes_max, &mut input);
            execute(target, &input).unwrap();
        }
    }
}

#[test]
fn every_target_has_a_libfuzzer_program_and_a_name_of_its_own() {
    let manifest = std::fs::read_to_string(corpus::folder().join("Cargo.toml")).unwrap();
    for (index, target) in TARGETS.iter().enumerate() {
        assert!(
            manifest.contains(&format!("name = \"{}\"", target.name)),
            "{} is not in fuzz/Cargo.toml",
            target.name
        );
        let program = corpus::folder().join(format!("fuzz_targets/{}.rs", target.name));
        assert!(program.is_file(), "{} is missing", program.display());
        assert!(TARGETS[..index].iter().all(|t| t.name != target.name), "two targets {}", target.name);
    }
}

#[test]
fn a_panic_becomes_an_error_that_names_its_input() {
    fn fails(input: &[u8]) {
        assert!(input.len() < 3);
    }
    let target =
        peristyle_fuzzing::Target { name: "self_test", run: fails, bytes_max: 8, weight: 1, seeds: Vec::new };
    execute(&target, &[1, 2]).unwrap();
    let error = execute(&target, &[1, 2, 3]).unwrap_err().to_string();
    let path = error.rsplit(' ').next().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), [1, 2, 3]);
    std::fs::remove_dir_all(corpus::folder().join("artifacts/self_test")).unwrap();
}
