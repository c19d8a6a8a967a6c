//! The hash of a certificate that a login is bound to.

use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// `tls-server-end-point` (RFC 5929, 4.1): the certificate hashed with the hash function of its own signature, but at
/// least SHA-256. `None` if that function is unusual: then the login is not bound.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(match signature_algorithm(certificate)? {
        // md5, sha1, sha256 WithRSAEncryption (RFC 8017, appendix C)
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 4 | 5 | 11]
        // ecdsa-with-SHA1, -SHA256 (RFC 5758, 3.2)
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01 | 0x03, 0x02]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Sha256::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => Sha384::digest(certificate).to_vec(),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => Sha512::digest(certificate).to_vec(),
        _ => return None,
    })
}

/// The object identifier in `signatureAlgorithm` (RFC 5280, 4.1): a certificate is a sequence of the signed part, the
/// algorithm, and the signature.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (body, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(body, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    let (identifier, _) = element(algorithm, OBJECT_IDENTIFIER)?;
    Some(identifier)
}

/// The content of an element of DER with this tag, and the bytes after it (X.690, 8.1).
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, length, rest @ ..] = der else { return None };
    if *found != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The part of a certificate that is parsed.
    fn certificate(identifier: &[u8]) -> Vec<u8> {
        let mut der = vec![0x30, 0x81, u8::try_from(5 + 4 + identifier.len()).unwrap(), 0x30, 3, 2, 1, 7];
        der.extend([0x30, u8::try_from(identifier.len() + 2).unwrap(), 0x06]);
        der.push(u8::try_from(identifier.len()).unwrap());
        der.extend(identifier);
        der
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (identifier, bytes) in [
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 11][..], Some(32)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 5], Some(32)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02], Some(32)),
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], Some(48)),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13], Some(64)),
            // Ed25519 and RSASSA-PSS have none, or more than one.
            (&[0x2b, 0x65, 0x70], None),
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 10], None),
        ] {
            let der = certificate(identifier);
            assert_eq!(signature_algorithm(&der), Some(identifier));
            assert_eq!(end_point(&der).map(|hash| hash.len()), bytes, "{identifier:x?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_something_else_has_none() {
        let der = certificate(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]);
        for end in 0..der.len() {
            assert_eq!(end_point(&der[..end]), None, "{end}");
        }
        for wrong in
            [&[0x31, 0][..], &[0x30, 0x80], &[0x30, 0x85, 1, 1, 1, 1, 1], &[0x30, 0x84, 255, 255, 255, 255]]
        {
            assert_eq!(end_point(wrong), None, "{wrong:x?}");
        }
    }
}
