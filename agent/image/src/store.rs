//! The store: what was pulled, and what is removed again.
//!
//! Those that change it take turns by a lock. What is new is made aside, and renamed when it is whole.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use headstart_config::check_place;
use headstart_config::image::{CONFIG_FILE, ImageName, ImageRecord, ImageStore, read_record};

use crate::archive::Archive;
use crate::digest;
use crate::error::{ImageError, at};
use crate::layer::uncompress;
use crate::layout::Layout;
use crate::manifest::{self, BYTES_MAX, Found, Source};
use crate::registry::Registry;
use crate::tree::Tree;
use crate::unpack::Unpacking;

/// Where something is made that is not whole yet.
const ASIDE: &str = "unfinished";

/// In an image's directory, beside its root file system.
const RECORD: &str = "image.json";

/// What a container's root file system has that an image may lack. Where it cannot be made, the OCI runtime says so.
const PLACES: [&str; 5] = ["proc", "dev", "tmp", "run", "sys"];

/// How far a pull is: the number of a layer, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is fetched.
    Fetching(usize, usize),
    /// It is unpacked.
    Unpacking(usize, usize),
}

/// What is removed, and what is not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// IDs of images that were removed.
    pub removed: Vec<String>,
    /// Bytes of their layers.
    pub bytes: u64,
    /// IDs of images without a name that stay, because a function or an instance uses them.
    pub used: Vec<String>,
}

/// The store, as long as others may not change it.
pub struct Store {
    images: ImageStore,
    _lock: File,
}

/// What the store has, by name.
///
/// # Errors
/// When it cannot be read. What cannot be read of it is left out.
pub fn list(images: &ImageStore) -> Result<Vec<ImageRecord>, ImageError> {
    let refs = images.refs();
    let entries = match fs::read_dir(&refs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(&refs))?,
    };
    let records = entries.flatten().filter_map(|entry| read_record(File::open(entry.path()).ok()?).ok());
    let mut records: Vec<_> = records.collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

impl Store {
    /// Makes the store if it is not there, and waits until nothing else changes it.
    ///
    /// # Errors
    /// When other users could change it, or it cannot be made.
    pub fn open(images: ImageStore) -> Result<Self, ImageError> {
        let place = &images.0;
        // Files of an image may belong to any user: no user but root comes to them this way.
        DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(at(place))?;
        check_place(place).map_err(ImageError::Unsafe)?;
        for directory in [images.refs(), images.roots()] {
            DirBuilder::new().recursive(true).mode(0o711).create(&directory).map_err(at(&directory))?;
        }
        let path = place.join("lock");
        let lock = File::create(&path).map_err(at(&path))?;
        lock.lock().map_err(at(&path))?;
        let store = Self { images, _lock: lock };
        store.clear_aside()?;
        Ok(store)
    }

    /// Fetches an image, checks and unpacks it, and lets its name stand for it. True if the name stood for another one, or for
    /// none.
    ///
    /// # Errors
    /// Why not. Nothing has changed then.
    pub fn pull(
        &self,
        name: &ImageName,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(ImageRecord, bool), ImageError> {
        let pulled = self.pull_aside(name, progress);
        let cleared = self.clear_aside();
        let pulled = pulled?;
        cleared?;
        Ok(pulled)
    }

    fn pull_aside(
        &self,
        name: &ImageName,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(ImageRecord, bool), ImageError> {
        let mut source: Box<dyn Source> = match name {
            ImageName::Registry { host, .. } => Box::new(Registry::new(host, name)?),
            ImageName::Layout { directory, tag } => Box::new(Layout::new(directory, tag.as_deref())),
            ImageName::Archive(file) => Box::new(Archive::new(file)),
        };
        let Found { digest, config } = source.find()?;
        let (layers, mut record) = manifest::configuration(&config, source.layers())?;
        (record.name, record.digest) = (name.to_string(), digest);
        record.pulled =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let root = self.images.roots().join(&record.id);
        match File::open(root.join(RECORD)).ok().and_then(|file| read_record(file).ok()) {
            Some(known) => record.bytes = known.bytes,
            None => self.unpack(&mut *source, &layers, &config, &mut record, progress)?,
        }
        let file = self.images.record_file(name);
        let before = File::open(&file).ok().and_then(|file| read_record(file).ok());
        self.write(&file, &encoded(&record))?;
        Ok((record.clone(), before.is_none_or(|before| before.id != record.id)))
    }

    fn unpack(
        &self,
        source: &mut dyn Source,
        layers: &[String],
        config: &[u8],
        record: &mut ImageRecord,
        progress: &mut dyn FnMut(Step),
    ) -> Result<(), ImageError> {
        let aside = self.aside();
        let (image, rootfs) = (aside.join("image"), aside.join("image/rootfs"));
        for (directory, mode) in [(&aside, 0o700), (&image, 0o711), (&rootfs, 0o755)] {
            DirBuilder::new().mode(mode).create(directory).map_err(at(directory))?;
        }
        let tree = Tree::open(&rootfs).map_err(at(&rootfs))?;
        let mut unpacking = Unpacking::into(tree);
        let mut left = BYTES_MAX;
        for (number, expected) in layers.iter().enumerate() {
            let make = |name: &str| {
                let path = aside.join(name);
                File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(&path)
                    .map_err(at(path))
            };
            let (mut blob, mut archive) = (make("blob")?, make("layer")?);
            progress(Step::Fetching(number + 1, layers.len()));
            source.layer(number, &mut blob).map_err(|error| self.of_store(error))?;
            progress(Step::Unpacking(number + 1, layers.len()));
            let (found, rest) =
                uncompress(&mut blob, &mut archive, left).map_err(|error| match error.kind() {
                    io::ErrorKind::FileTooLarge => {
                        ImageError::TooLarge { what: "GiB of layers", limit: BYTES_MAX >> 30 }
                    }
                    _ => self.of_store(at(format!("layer {}", number + 1))(error)),
                })?;
            digest::check(format!("layer {}", number + 1), expected, &found)?;
            left = rest;
            unpacking.layer(&archive).map_err(|error| self.of_store(error))?;
        }
        for name in ["blob", "layer"] {
            let _ = fs::remove_file(aside.join(name));
        }
        unpacking.make(&PLACES);
        record.bytes = BYTES_MAX - left;
        self.write(&image.join(CONFIG_FILE), config)?;
        self.write(&image.join(RECORD), &encoded(record))?;
        let synced = File::open(&image).and_then(|image| Ok(rustix::fs::syncfs(image)?));
        synced.map_err(|error| self.of_store(at(&image)(error)))?;
        let root = self.images.roots().join(&record.id);
        // One without a record is none.
        self.remove_root(&record.id)?;
        fs::rename(&image, &root).map_err(at(&root))
    }

    /// Lets a name stand for nothing, and removes its image if nothing else needs it.
    ///
    /// # Errors
    /// When it stands for nothing.
    pub fn remove(&self, name: &ImageName) -> Result<Collected, ImageError> {
        let file = self.images.record_file(name);
        let record = File::open(&file).ok().and_then(|file| read_record(file).ok());
        let record = record.ok_or_else(|| ImageError::Unknown { name: name.to_string() })?;
        fs::remove_file(&file).map_err(at(file))?;
        self.collect_those(|id| id == record.id)
    }

    /// Removes the images without a name that no function and no instance uses.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect(&self) -> Result<Collected, ImageError> {
        self.collect_those(|_| true)
    }

    fn collect_those(&self, wanted: impl Fn(&str) -> bool) -> Result<Collected, ImageError> {
        let named: BTreeSet<String> = list(&self.images)?.into_iter().map(|record| record.id).collect();
        let roots = self.images.roots();
        let mut collected = Collected::default();
        for entry in fs::read_dir(&roots).map_err(at(&roots))?.flatten() {
            let Ok(id) = entry.file_name().into_string() else { continue };
            if named.contains(&id) || !wanted(&id) {
                continue;
            }
            // A function of the agent holds it as long as it is configured.
            let held = File::open(entry.path().join(CONFIG_FILE)).ok();
            let is_held =
                held.as_ref().is_some_and(|held| matches!(held.try_lock(), Err(TryLockError::WouldBlock)));
            if is_held || is_mounted(&id) {
                collected.used.push(id);
                continue;
            }
            let record = File::open(entry.path().join(RECORD)).ok().and_then(|file| read_record(file).ok());
            self.remove_root(&id)?;
            collected.bytes += record.map_or(0, |record| record.bytes);
            collected.removed.push(id);
        }
        Ok(collected)
    }

    fn aside(&self) -> PathBuf {
        self.images.0.join(ASIDE)
    }

    fn clear_aside(&self) -> Result<(), ImageError> {
        remove(&self.images.0, &[ASIDE])
    }

    fn remove_root(&self, id: &str) -> Result<(), ImageError> {
        remove(&self.images.0, &["roots", id])
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let unfinished = path.with_extension("new");
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, path)
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            self.of_store(at(path)(error))
        })
    }

    /// Names the store where a part of it was full.
    fn of_store(&self, error: ImageError) -> ImageError {
        match error {
            ImageError::NoSpace { .. } => ImageError::NoSpace { path: self.images.0.clone() },
            other => other,
        }
    }
}

/// It has nothing that has no form in JSON.
fn encoded(record: &ImageRecord) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}

fn remove(store: &Path, name: &[&str]) -> Result<(), ImageError> {
    let parts: Vec<&OsStr> = name.iter().map(OsStr::new).collect();
    let removed = Tree::open(store).and_then(|tree| tree.remove(&parts));
    removed.map_err(at(store.join(name.join("/"))))
}

/// Whether a container has this root file system, be it of an agent that has ended.
fn is_mounted(id: &str) -> bool {
    let place = format!("/{id}/rootfs");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.map(|process| process.path().join("mountinfo")).any(|file| {
        // Those that end meanwhile have nothing mounted.
        fs::read_to_string(file).is_ok_and(|mounts| mounts.contains(&place))
    })
}

#[cfg(test)]
mod tests;
