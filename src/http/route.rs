//! What is served where.
//!
//! Owns: the meaning of method and target. Absent: fields and bodies.
//!
//! Methods come first: one that is not known is 501 whatever its target. Then the form of the
//! target, then its path (404), then whether the method is allowed on that path (405).

use super::response::Reason;

/// The only path.
const PATH: &str = "/batch";

/// Methods that are known and refused with 405; the names are case-sensitive. `TRACE` is among
/// them because nothing here reflects requests.
const METHODS_KNOWN: [&str; 8] =
    ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/// Accepts `POST /batch`, and names the reason against anything else.
pub(super) fn route(method: &str, target: &str) -> Result<(), Reason> {
    if method == "CONNECT" {
        return Err(Reason::Tunnel);
    }
    if !METHODS_KNOWN.contains(&method) {
        return Err(Reason::MethodNotImplemented);
    }
    if target == "*" {
        // Asterisk-form asks about the server as a whole; that `POST` is allowed is the answer.
        let is_options = method == "OPTIONS";
        return Err(if is_options { Reason::MethodNotAllowed } else { Reason::TargetForm });
    }
    if path_of(target)? != PATH {
        return Err(Reason::NotFound);
    }
    if method == "POST" { Ok(()) } else { Err(Reason::MethodNotAllowed) }
}

/// The path of a target in origin-form or absolute-form, without its query.
fn path_of(target: &str) -> Result<&str, Reason> {
    if target.contains('#') {
        return Err(Reason::TargetForm);
    }
    let path_and_query = if target.starts_with('/') { target } else { after_authority(target)? };
    Ok(path_and_query.split('?').next().unwrap_or(path_and_query))
}

/// The part of an absolute-form target behind the authority, which overrides the host field
/// (RFC 9112 section 3.2.2); any authority will do, since this server has one name space.
fn after_authority(target: &str) -> Result<&str, Reason> {
    let (scheme, rest) = target.split_once("://").ok_or(Reason::TargetForm)?;
    let scheme_is_valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if !scheme_is_valid || authority.is_empty() || !is_authority(authority.as_bytes()) {
        return Err(Reason::TargetForm);
    }
    if scheme.eq_ignore_ascii_case("http") { Ok(path) } else { Err(Reason::NotFound) }
}

/// Whether this is `host [":" port]` (RFC 3986 section 3.2), possibly empty. User information is
/// not allowed (RFC 9110 section 4.2.4).
pub(super) fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.strip_prefix(b"[") {
        Some(rest) => match rest.iter().position(|&b| b == b']') {
            Some(end) => {
                let address = &rest[..end];
                let is_address = !address.is_empty()
                    && address.iter().all(|b| b.is_ascii_hexdigit() || b":.".contains(b));
                if !is_address {
                    return false;
                }
                (&b""[..], &rest[end + 1..])
            }
            None => return false,
        },
        None => text.split_at(text.iter().position(|&b| b == b':').unwrap_or(text.len())),
    };
    let host_is_valid =
        host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(b));
    let port_is_valid = match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.iter().all(u8::is_ascii_digit),
    };
    host_is_valid && port_is_valid
}

#[cfg(test)]
mod tests {
    use super::is_authority;

    #[test]
    fn authority_with_host_and_port_is_accepted() {
        for text in ["", "a", "a.b:80", "127.0.0.1:6667", "[::1]", "[::1]:80", "a:", "x%20y"] {
            assert!(is_authority(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn authority_with_other_characters_is_refused() {
        for text in ["a b", "a@b", "a/b", "a:b", "a:8 0", "[::1", "[]", "[::1]x", "[x]:1", "a:1:2"]
        {
            assert!(!is_authority(text.as_bytes()), "{text:?}");
        }
        assert!(!is_authority(b"\xc3\xa9"));
    }
}
