//! A folder of one test, gone with it unless the test failed.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("peristyle-e2e-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, keep: true })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below that exists.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The test has passed: nobody needs the files.
    pub fn passed(mut self) {
        self.keep = false;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            println!("left for you: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            println!("{}: {error}", self.path.display());
        }
    }
}
