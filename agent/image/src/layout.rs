//! A directory with the layout of the OCI image specification.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex};

use crate::digest::{self, Hashing};
use crate::error::{ImageError, at};
use crate::manifest::{self, DOCUMENT_MAX, Found, Source, Top};

/// Indexes that lead to others.
const INDEXES_MAX: usize = 3;

pub(crate) struct Layout {
    directory: PathBuf,
    tag: Option<String>,
    layers: Vec<Descriptor>,
}

impl Layout {
    pub(crate) fn new(directory: &Path, tag: Option<&str>) -> Self {
        Self { directory: directory.to_owned(), tag: tag.map(str::to_owned), layers: Vec::new() }
    }

    /// Descriptors have digests of digits and letters only.
    fn blob(&self, descriptor: &Descriptor) -> PathBuf {
        let digest = descriptor.digest();
        self.directory.join("blobs").join(digest.algorithm().to_string()).join(digest.digest())
    }

    fn document(&self, what: &str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let bytes = read(&self.blob(descriptor))?;
        digest::check(format!("the {what}"), descriptor.digest().as_ref(), &digest::of(&bytes))?;
        Ok(bytes)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(at(path))?;
    file.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(ImageError::TooLarge { what: "bytes of description", limit: DOCUMENT_MAX });
    }
    Ok(bytes)
}

impl Source for Layout {
    fn find(&mut self) -> Result<Found, ImageError> {
        let place = self.directory.display().to_string();
        let index: ImageIndex = manifest::document("index", &read(&self.directory.join("index.json"))?)?;
        let mut chosen = manifest::choose(&index, self.tag.as_deref(), &place)?.clone();
        for _ in 0..INDEXES_MAX {
            let bytes = self.document("manifest", &chosen)?;
            match manifest::top(&bytes)? {
                Top::Index(index) => chosen = manifest::choose(&index, None, &place)?.clone(),
                Top::Manifest(manifest) => {
                    let config = self.document("configuration", manifest.config())?;
                    self.layers = manifest.layers().clone();
                    return Ok(Found { digest: chosen.digest().to_string(), config });
                }
            }
        }
        Err(ImageError::Malformed { what: "index".to_owned(), detail: "it leads to itself".to_owned() })
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&mut self, number: usize, into: &mut File) -> Result<(), ImageError> {
        let descriptor = &self.layers[number];
        let path = self.blob(descriptor);
        let mut blob = File::open(&path).map_err(at(&path))?;
        let mut hashing = Hashing::new(into, descriptor.size());
        io::copy(&mut blob, &mut hashing).map_err(at(&path))?;
        digest::check(format!("layer {}", number + 1), descriptor.digest().as_ref(), &hashing.finish().0)
    }
}
