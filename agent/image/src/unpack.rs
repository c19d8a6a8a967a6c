//! Layers become a root file system.
//!
//! A layer is read twice: what it takes away from the layers below it is taken away first, wherever that stands in it (image
//! specification, "Whiteouts").

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;

use tar::{Archive, Entry, EntryType};

use crate::error::ImageError;
use crate::manifest::BYTES_MAX;
use crate::tree::{Metadata, Tree, parts};

/// Files and directories of an image, in all its layers.
const ENTRIES_MAX: u64 = 2_000_000;

/// What an entry may have before its content: headers, long names, attributes.
const HEADERS_MAX: u64 = 1024 * 1024;

/// Names that take something away begin so.
const WHITEOUT: &[u8] = b".wh.";

/// Takes away all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Other names of the file system from which these come (aufs).
const RESERVED: &[u8] = b".wh..wh.";

/// Attributes in extended headers (as GNU tar and Go write them).
const XATTR: &str = "SCHILY.xattr.";

/// A root file system that layers are unpacked into, the lowest first.
pub(crate) struct Unpacking {
    tree: Tree,
    layers: usize,
    entries: u64,
    /// Of files. A sparse one is larger than what the archive has of it.
    bytes: u64,
    /// What this process does not make: devices.
    pub(crate) left_out: u64,
}

/// An archive that is read by [`tar`], which keeps headers in memory: only so much may be read between contents.
struct Metered<'a> {
    file: &'a File,
    left: &'a Cell<u64>,
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header is too long"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

impl Seek for Metered<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Unpacking {
    pub(crate) fn into(tree: Tree) -> Self {
        Self { tree, layers: 0, entries: 0, bytes: 0, left_out: 0 }
    }

    /// Puts an archive on top of what is there.
    pub(crate) fn layer(&mut self, archive: &File) -> Result<(), ImageError> {
        self.layers += 1;
        self.each(archive, Self::take_away)?;
        self.each(archive, Self::put)
    }

    /// Makes these directories, unless something is there.
    pub(crate) fn make(&self, names: &[&str]) {
        for name in names {
            let _ = self.tree.make(OsStr::new(name));
        }
    }

    fn each(
        &mut self,
        mut archive: &File,
        act: impl Fn(&mut Self, &mut Entry<'_, Metered<'_>>, &[u8]) -> io::Result<()>,
    ) -> Result<(), ImageError> {
        let layer = self.layers;
        let of_archive = |error| self::entry(layer, b"", error);
        archive.rewind().map_err(of_archive)?;
        let left = Cell::new(HEADERS_MAX);
        let mut archive = Archive::new(Metered { file: archive, left: &left });
        let mut entries = archive.entries_with_seek().map_err(of_archive)?;
        loop {
            left.set(HEADERS_MAX);
            let Some(entry) = entries.next() else { return Ok(()) };
            let mut entry = entry.map_err(of_archive)?;
            // Each layer is read twice.
            self.entries += 1;
            if self.entries > 2 * ENTRIES_MAX {
                return Err(ImageError::TooLarge { what: "files", limit: ENTRIES_MAX });
            }
            left.set(u64::MAX);
            let name = entry.path_bytes().into_owned();
            act(self, &mut entry, &name).map_err(|error| self::entry(layer, &name, error))?;
        }
    }

    fn take_away(&mut self, _: &mut Entry<'_, Metered<'_>>, name: &[u8]) -> io::Result<()> {
        let parts = parts(name)?;
        let Some((last, before)) = parts.split_last() else { return Ok(()) };
        match last.as_bytes().strip_prefix(WHITEOUT) {
            None => Ok(()),
            Some(_) if last.as_bytes() == OPAQUE => self.tree.empty(before),
            Some(_) if last.as_bytes().starts_with(RESERVED) => Ok(()),
            // They would be the directory itself, and the one above.
            Some(b"" | b"." | b"..") => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "it takes nothing away"))
            }
            Some(gone) => {
                let gone: Vec<_> = before.iter().copied().chain([OsStr::from_bytes(gone)]).collect();
                self.tree.remove(&gone)
            }
        }
    }

    fn put(&mut self, entry: &mut Entry<'_, Metered<'_>>, name: &[u8]) -> io::Result<()> {
        let parts = parts(name)?;
        // The root has the mode that the store gives it.
        let Some(last) = parts.last() else { return Ok(()) };
        if last.as_bytes().starts_with(WHITEOUT) {
            return Ok(());
        }
        let metadata = metadata(entry)?;
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        match entry.header().entry_type() {
            EntryType::Directory => self.tree.directory(&parts, &metadata),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.bytes = self.bytes.saturating_add(entry.size());
                if self.bytes > BYTES_MAX {
                    return Err(invalid(&format!("the files would have more than {} GiB", BYTES_MAX >> 30)));
                }
                self.tree.file(&parts, &metadata, entry)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
                self.tree.symlink(&parts, &target, &metadata)
            }
            EntryType::Link => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?.into_owned();
                self.tree.hard_link(&parts, &self::parts(&target)?)
            }
            EntryType::Fifo => self.tree.fifo(&parts, &metadata),
            EntryType::Char | EntryType::Block => {
                self.left_out += 1;
                self.tree.remove(&parts)
            }
            EntryType::XGlobalHeader => Ok(()),
            other => {
                Err(invalid(&format!("entries of type {:?} are not known", char::from(other.as_byte()))))
            }
        }
    }
}

fn metadata(entry: &mut Entry<'_, Metered<'_>>) -> io::Result<Metadata> {
    let header = entry.header();
    // Fields may be blank.
    let number = |number: io::Result<u64>| u32::try_from(number.unwrap_or(0)).map_err(io::Error::other);
    let mut metadata = Metadata {
        mode: header.mode()?,
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        mtime: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(i64::MAX),
        xattrs: Vec::new(),
    };
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let (Ok(key), value) = (extension.key(), extension.value_bytes()) else { continue };
        let text = std::str::from_utf8(value).unwrap_or_default();
        match key {
            "uid" => metadata.uid = text.parse().map_err(io::Error::other)?,
            "gid" => metadata.gid = text.parse().map_err(io::Error::other)?,
            "mtime" => {
                let seconds = text.split('.').next().unwrap_or_default();
                metadata.mtime = seconds.parse().map_err(io::Error::other)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    metadata.xattrs.push((name.as_bytes().to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(metadata)
}

fn entry(layer: usize, name: &[u8], error: io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ImageError::NoSpace { path: "the store".into() }
        }
        _ => ImageError::Entry {
            layer,
            name: String::from_utf8_lossy(name).into_owned(),
            detail: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
