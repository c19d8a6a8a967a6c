//! What `docker save` writes: an archive of a description and of layers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tar::{Archive as Tar, EntryType};

use crate::digest;
use crate::error::{ImageError, at};
use crate::manifest::{self, DOCUMENT_MAX, Found, LAYERS_MAX, Source};

/// Files in an archive that are looked at: there are a few for each layer.
const MEMBERS_MAX: usize = 4096;

/// Links that lead to others. A layer that is there twice is a link.
const LINKS_MAX: usize = 8;

const DESCRIPTION: &str = "manifest.json";

pub(crate) struct Archive {
    path: PathBuf,
    members: HashMap<PathBuf, Member>,
    layers: Vec<String>,
}

enum Member {
    File { at: u64, bytes: u64 },
    Link(PathBuf),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    layers: Vec<String>,
}

impl Archive {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), members: HashMap::new(), layers: Vec::new() }
    }

    fn malformed(&self, detail: impl Into<String>) -> ImageError {
        ImageError::Malformed { what: self.path.display().to_string(), detail: detail.into() }
    }

    fn list(&mut self) -> Result<(), ImageError> {
        let file = File::open(&self.path).map_err(at(&self.path))?;
        let mut members = HashMap::new();
        let read = |members: &mut HashMap<PathBuf, Member>| -> io::Result<()> {
            for entry in Tar::new(&file).entries_with_seek()?.take(MEMBERS_MAX) {
                let entry = entry?;
                let name = normal(&entry.path()?);
                match entry.header().entry_type() {
                    EntryType::Regular => {
                        let member = Member::File { at: entry.raw_file_position(), bytes: entry.size() };
                        members.insert(name, member);
                    }
                    EntryType::Symlink | EntryType::Link => {
                        let Some(target) = entry.link_name()? else { continue };
                        let beside = name.parent().unwrap_or(Path::new(""));
                        let is_link = entry.header().entry_type() == EntryType::Symlink;
                        let target = if is_link { normal(&beside.join(target)) } else { normal(&target) };
                        members.insert(name, Member::Link(target));
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        read(&mut members).map_err(|error| self.malformed(error.to_string()))?;
        self.members = members;
        Ok(())
    }

    /// A file of the archive.
    fn open(&self, name: &str) -> Result<(impl Read + use<>, u64), ImageError> {
        let mut name = normal(Path::new(name));
        for _ in 0..LINKS_MAX {
            match self.members.get(&name) {
                Some(Member::Link(target)) => name = target.clone(),
                Some(Member::File { at: place, bytes }) => {
                    let mut file = File::open(&self.path).map_err(at(&self.path))?;
                    file.seek(SeekFrom::Start(*place)).map_err(at(&self.path))?;
                    return Ok((file.take(*bytes), *bytes));
                }
                None => break,
            }
        }
        Err(self.malformed(format!("it has no file {}", name.display())))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (mut file, bytes) = self.open(name)?;
        if bytes > DOCUMENT_MAX {
            return Err(ImageError::TooLarge { what: "bytes of description", limit: DOCUMENT_MAX });
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(at(&self.path))?;
        Ok(text)
    }
}

/// A name without `.` and `..`: it is looked up in a table, and leads nowhere.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => normal.push(name),
            std::path::Component::ParentDir => drop(normal.pop()),
            _ => {}
        }
    }
    normal
}

impl Source for Archive {
    fn find(&mut self) -> Result<Found, ImageError> {
        self.list()?;
        let mut images: Vec<Image> = manifest::document(DESCRIPTION, &self.document(DESCRIPTION)?)?;
        let image = match (images.pop(), images.is_empty()) {
            (Some(image), true) => image,
            (None, _) => return Err(self.malformed("it has no image")),
            (Some(_), false) => {
                let place = self.path.display().to_string();
                return Err(ImageError::Several { place, have: String::new(), hint: "save one only" });
            }
        };
        if image.layers.len() > LAYERS_MAX {
            return Err(ImageError::TooLarge { what: "layers", limit: LAYERS_MAX as u64 });
        }
        let config = self.document(&image.config)?;
        let found = digest::of(&config);
        // The file is named after its digest.
        let stem = Path::new(&image.config).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let expected = stem.strip_suffix(".json").unwrap_or(&stem);
        digest::check("the configuration", &format!("sha256:{expected}"), &found)?;
        self.layers = image.layers;
        Ok(Found { digest: found, config })
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    /// It is checked when it is uncompressed.
    fn layer(&mut self, number: usize, into: &mut File) -> Result<(), ImageError> {
        let (mut layer, _) = self.open(&self.layers[number])?;
        io::copy(&mut layer, into).map(drop).map_err(at(&self.path))
    }
}
