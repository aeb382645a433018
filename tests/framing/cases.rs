//! The table of inputs and outcomes, by section of RFC 9112.
//!
//! A row is `name => outcome, input;`. Rows stand in a macro because a list of tuples would take
//! five lines each.

use super::Case;

macro_rules! table {
    ($table:ident: $($name:literal => $outcome:literal, $input:expr;)*) => {
        pub(super) const $table: &[Case] =
            &[$(Case { name: $name, outcome: $outcome, input: $input }),*];
    };
}

/// A request line, a host and the end of the head.
macro_rules! line {
    ($line:literal) => {
        concat!($line, "\r\nHost: a\r\n\r\n")
    };
}

/// A `POST /batch` with a host, followed by more fields, the empty line and the body.
macro_rules! post {
    ($rest:literal) => {
        concat!("POST /batch HTTP/1.1\r\nHost: a\r\n", $rest)
    };
}

/// A `POST /batch` in chunks.
macro_rules! chunks {
    ($rest:literal) => {
        concat!("POST /batch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", $rest)
    };
}

/// A message and a complete request, to see whether the connection goes on.
macro_rules! then_next {
    ($first:expr) => {
        concat!($first, "POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nZ")
    };
}

// RFC 9112 sections 2 and 3: lines, methods, targets, versions.
table! { REQUEST_LINES:
    "stock client" => "200 abc | idle",
        "POST /batch HTTP/1.1\r\nHost: 127.0.0.1:6667\r\nAccept-Encoding: identity\r\n\
         Content-Length: 3\r\n\r\nabc";
    "nothing yet" => "idle", "";
    "part of a method" => "waits", "POS";
    "part of a head" => "waits", "POST /batch HTTP/1.1\r\nHost: a\r\n";
    "one empty line first" => "200 | idle",
        "\r\nPOST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    "one empty line alone" => "idle", "\r\n";
    "two empty lines first" => "400 | closes",
        "\r\n\r\nPOST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    "bare line feed first" => "400 | closes", line!("\nPOST /batch HTTP/1.1");
    "bare return first" => "400 | closes", "\rPOST /batch HTTP/1.1\r\nHost: a\r\n\r\n";
    "space first" => "400 | closes", line!(" POST /batch HTTP/1.1");
    "tab first" => "400 | closes", line!("\tPOST /batch HTTP/1.1");
    "byte order mark first" => "400 | closes", line!("\u{feff}POST /batch HTTP/1.1");
    "line feed ends the request line" => "400 | closes", "POST /batch HTTP/1.1\nHost: a\r\n\r\n";
    "return ends the request line" => "400 | closes", "POST /batch HTTP/1.1\rHost: a\r\n\r\n";
    "two returns end the request line" => "400 | closes", line!("POST /batch HTTP/1.1\r");
    "two spaces before the target" => "400 | closes", line!("POST  /batch HTTP/1.1");
    "two spaces before the version" => "400 | closes", line!("POST /batch  HTTP/1.1");
    "space behind the version" => "400 | closes", line!("POST /batch HTTP/1.1 ");
    "tab as delimiter" => "400 | closes", line!("POST\t/batch HTTP/1.1");
    "tab before the version" => "400 | closes", line!("POST /batch\tHTTP/1.1");
    "form feed as delimiter" => "400 | closes", line!("POST\x0c/batch HTTP/1.1");
    "vertical tab as delimiter" => "400 | closes", line!("POST /batch\x0bHTTP/1.1");
    "space in the target" => "400 | closes", line!("POST /bat ch HTTP/1.1");
    "no target" => "400 | closes", line!("POST HTTP/1.1");
    "request line of version 0.9" => "400 | closes", "GET /\r\n\r\n";
    "method alone" => "400 | closes", "POST\r\n\r\n";
    "words" => "400 | closes", "hello\r\n";
    "NUL in the method" => "400 | closes", line!("PO\0ST /batch HTTP/1.1");
    "NUL in the target" => "400 | closes", line!("POST /bat\0ch HTTP/1.1");
    "DEL in the target" => "400 | closes", line!("POST /bat\x7fch HTTP/1.1");
    "high bytes in the target" => "400 | closes", line!("POST /batch\u{e9} HTTP/1.1");
    "high bytes in the method" => "400 | closes", line!("P\u{d6}ST /batch HTTP/1.1");
    "slash in the method" => "400 | closes", line!("PO/ST /batch HTTP/1.1");
    "handshake of TLS" => "400 | closes", "\x16\x03\x01\x02\x00\x01\x00";
    "request line without an end" => "waits", "POST /batch HTTP/1.1";
    "version 1.2" => "505 | closes", line!("POST /batch HTTP/1.2");
    "version 2.0" => "505 | closes", line!("POST /batch HTTP/2.0");
    "version 0.9" => "505 | closes", line!("POST /batch HTTP/0.9");
    "version 9.9" => "505 | closes", line!("POST /batch HTTP/9.9");
    "preface of HTTP/2" => "505 | closes", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    "version in small letters" => "400 | closes", line!("POST /batch http/1.1");
    "version with three digits" => "400 | closes", line!("POST /batch HTTP/1.10");
    "version with leading zero" => "400 | closes", line!("POST /batch HTTP/01.1");
    "version without a point" => "400 | closes", line!("POST /batch HTTP/11");
    "version without a minor digit" => "400 | closes", line!("POST /batch HTTP/1.");
    "version with a plus" => "400 | closes", line!("POST /batch HTTP/+1.1");
    "another protocol's name" => "400 | closes", line!("POST /batch HTTQ/1.1");
    "request line of RTSP" => "400 | closes", "OPTIONS * RTSP/1.0\r\n\r\n";
    "target at its limit" => "404 | idle",
        line!("GET /234567890123456789012345678901234567890 HTTP/1.1");
    "target above its limit" => "414 | closes",
        line!("GET /2345678901234567890123456789012345678901 HTTP/1.1");
    "target above its limit without an end" => "414 | closes",
        "GET /2345678901234567890123456789012345678901";
    "method at its limit" => "501 | idle",
        line!("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF /batch HTTP/1.1");
    "method above its limit" => "501 | closes", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG";
}

// RFC 9112 section 3.2 and RFC 9110 section 9: what is served where.
table! { TARGETS:
    "query" => "200 A | idle",
        "POST /batch?x=1&y HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "empty query" => "200 A | idle",
        "POST /batch? HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form" => "200 A | idle",
        "POST http://a/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form with port and query" => "200 A | idle",
        "POST http://[::1]:80/batch?q HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form for another host" => "200 A | idle",
        "POST http://b/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form, scheme in capitals" => "200 A | idle",
        "POST HTTP://a/batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form without host field" => "400 | closes",
        "POST http://a/batch HTTP/1.1\r\nContent-Length: 1\r\n\r\nA";
    "absolute-form of https" => "404 | idle", line!("GET https://a/batch HTTP/1.1");
    "absolute-form without path" => "404 | idle", line!("GET http://a HTTP/1.1");
    "absolute-form, query without path" => "404 | idle", line!("GET http://a?/batch HTTP/1.1");
    "absolute-form without authority" => "400 | closes", line!("POST http:///batch HTTP/1.1");
    "absolute-form with user" => "400 | closes", line!("POST http://u@a/batch HTTP/1.1");
    "absolute-form with bad port" => "400 | closes", line!("POST http://a:b/batch HTTP/1.1");
    "absolute-form with bad scheme" => "400 | closes", line!("POST 1ttp://a/batch HTTP/1.1");
    "authority-form" => "400 | closes", line!("POST a:80 HTTP/1.1");
    "relative path" => "400 | closes", line!("POST batch HTTP/1.1");
    "fragment" => "400 | closes", line!("POST /batch#x HTTP/1.1");
    "asterisk-form of OPTIONS" => "405 | idle", line!("OPTIONS * HTTP/1.1");
    "asterisk-form of POST" => "400 | closes",
        "POST * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    "root" => "404 | idle", line!("GET / HTTP/1.1");
    "path with slash behind" => "404 | idle", line!("GET /batch/ HTTP/1.1");
    "path with two slashes" => "404 | idle", line!("GET //batch HTTP/1.1");
    "path in capitals" => "404 | idle", line!("GET /BATCH HTTP/1.1");
    "path percent-encoded" => "404 | idle", line!("GET /%62atch HTTP/1.1");
    "path with dots" => "404 | idle", line!("GET /x/../batch HTTP/1.1");
    "POST elsewhere" => "404 | 200 Z | idle",
        then_next!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    "POST elsewhere, its body arriving" => "404 | waits",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab";
    "POST elsewhere in chunks" => "404 | closes",
        then_next!("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "POST elsewhere, more than is dropped" => "404 | closes",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n";
    "POST elsewhere, as much as is dropped" => "404 | waits",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 65536\r\n\r\n";
    "POST elsewhere without length" => "404 | 200 Z | idle", then_next!(line!("POST /x HTTP/1.1"));
    "GET" => "405 | 200 Z | idle", then_next!(line!("GET /batch HTTP/1.1"));
    "GET with body" => "405 | 200 Z | idle",
        then_next!("GET /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nGET");
    "HEAD" => "405 | idle", line!("HEAD /batch HTTP/1.1");
    "PUT" => "405 | idle", "PUT /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "DELETE" => "405 | idle", line!("DELETE /batch HTTP/1.1");
    "PATCH" => "405 | idle", "PATCH /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "OPTIONS" => "405 | idle", line!("OPTIONS /batch HTTP/1.1");
    "TRACE" => "405 | idle", line!("TRACE /batch HTTP/1.1");
    "CONNECT" => "501 | closes", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";
    "method in small letters" => "501 | 200 Z | idle",
        then_next!("post /batch HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
    "unknown method" => "501 | idle", line!("BREW /pot HTTP/1.1");
    "unknown method, odd token" => "501 | idle", line!("!#$%&'*+-.^_`|~ / HTTP/1.1");
}

// RFC 9112 section 5: field lines.
table! { FIELDS:
    "names in any case" => "200 A | idle",
        "POST /batch HTTP/1.1\r\nhOST: a\r\ncontent-LENGTH: 1\r\n\r\nA";
    "no space behind the colon" => "200 A | idle",
        "POST /batch HTTP/1.1\r\nHost:a\r\nContent-Length:1\r\n\r\nA";
    "white space around values" => "200 A | idle",
        "POST /batch HTTP/1.1\r\nHost: \t a \t\r\nContent-Length: \t 1\t \r\n\r\nA";
    "empty value" => "200 A | idle", post!("X:\r\nContent-Length: 1\r\n\r\nA");
    "high bytes in a value" => "200 A | idle", post!("X: \u{e9}\r\nContent-Length: 1\r\n\r\nA");
    "unknown fields" => "200 A | idle",
        post!("Upgrade: h2c\r\nTE: trailers\r\nContent-Length: 1\r\n\r\nA");
    "wire version and authorization" => "200 A | idle",
        post!("Outboard-Wire: 2\r\nAuthorization: Bearer x\r\nContent-Length: 1\r\n\r\nA");
    "authorization twice" => "400 | closes", post!("Authorization: x\r\nAuthorization: x\r\n\r\n");
    "wire version twice" => "400 | closes", post!("Outboard-Wire: 2\r\nOutboard-Wire: 2\r\n\r\n");
    "space before a colon" => "400 | closes", post!("Content-Length : 1\r\n\r\nA");
    "tab before a colon" => "400 | closes", post!("Content-Length\t: 1\r\n\r\nA");
    "space before the colon of a coding" => "400 | closes",
        post!("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n");
    "line without colon" => "400 | closes", post!("Content-Length 1\r\n\r\nA");
    "empty name" => "400 | closes", post!(": 1\r\n\r\n");
    "space in a name" => "400 | closes", post!("Content Length: 1\r\n\r\n");
    "bracket in a name" => "400 | closes", post!("X[]: 1\r\n\r\n");
    "high bytes in a name" => "400 | closes", post!("X\u{e9}: 1\r\n\r\n");
    "NUL in a name" => "400 | closes", post!("X\0Y: 1\r\n\r\n");
    "NUL in a value" => "400 | closes", post!("X: a\0b\r\n\r\n");
    "DEL in a value" => "400 | closes", post!("X: a\x7f\r\n\r\n");
    "escape in a value" => "400 | closes", post!("X: a\x1b[1m\r\n\r\n");
    "vertical tab in a value" => "400 | closes", post!("X: a\x0bb\r\n\r\n");
    "folded line" => "400 | closes", post!("X: a\r\n b\r\nContent-Length: 1\r\n\r\nA");
    "line folded with a tab" => "400 | closes", post!("X: a\r\n\tb\r\nContent-Length: 1\r\n\r\nA");
    "folded empty value" => "400 | closes", post!("X:\r\n b\r\nContent-Length: 1\r\n\r\nA");
    "fold of white space alone" => "400 | closes", post!("X: a\r\n \r\nContent-Length: 1\r\n\r\nA");
    "folded length" => "400 | closes", post!("Content-Length:\r\n 1\r\n\r\nA");
    "folded coding" => "400 | closes", post!("Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n");
    "space before the first field" => "400 | closes",
        "POST /batch HTTP/1.1\r\n Host: a\r\nContent-Length: 1\r\n\r\nA";
    "bare line feed behind a field" => "400 | closes", post!("X: a\nContent-Length: 1\r\n\r\nA");
    "bare line feed ends the head" => "400 | closes", post!("Content-Length: 1\r\n\nA");
    "bare line feeds throughout" => "400 | closes",
        "POST /batch HTTP/1.1\nHost: a\nContent-Length: 1\n\nA";
    "bare return in a value" => "400 | closes", post!("X: a\rContent-Length: 1\r\n\r\nA");
    "bare return in a name" => "400 | closes", post!("X\rY: a\r\n\r\n");
    "two returns end a line" => "400 | closes", post!("X: a\r\r\n\r\n");
    "return ends the head" => "400 | closes", post!("Content-Length: 1\r\n\rA");
    "as many fields as allowed" => "200 A | idle",
        post!("A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\nF: 1\r\nContent-Length: 1\r\n\r\nA");
    "one field too many" => "431 | closes",
        post!("A: 1\r\nB: 1\r\nC: 1\r\nD: 1\r\nE: 1\r\nF: 1\r\nG: 1\r\nContent-Length: 1\r\n\r\nA");
    "no host" => "400 | closes", "POST /batch HTTP/1.1\r\nContent-Length: 1\r\n\r\nA";
    "no fields" => "400 | closes", "POST /batch HTTP/1.1\r\n\r\n";
    "empty host" => "200 A | idle", "POST /batch HTTP/1.1\r\nHost:\r\nContent-Length: 1\r\n\r\nA";
    "two hosts" => "400 | closes", post!("Host: b\r\nContent-Length: 1\r\n\r\nA");
    "the same host twice" => "400 | closes", post!("Host: a\r\nContent-Length: 1\r\n\r\nA");
    "host with space" => "400 | closes", "POST /batch HTTP/1.1\r\nHost: a b\r\n\r\n";
    "host with list" => "400 | closes", "POST /batch HTTP/1.1\r\nHost: a, b\r\n\r\n";
    "host with path" => "400 | closes", "POST /batch HTTP/1.1\r\nHost: a/b\r\n\r\n";
    "host with user" => "400 | closes", "POST /batch HTTP/1.1\r\nHost: u@a\r\n\r\n";
    "host with bad port" => "400 | closes", "POST /batch HTTP/1.1\r\nHost: a:x\r\n\r\n";
    "host of version 6" => "200 A | idle",
        "POST /batch HTTP/1.1\r\nHost: [::1]:6667\r\nContent-Length: 1\r\n\r\nA";
}

// RFC 9112 section 6: lengths, and the requests that two readers would see differently.
table! { LENGTHS:
    "no length" => "411 | 200 Z | idle", then_next!(line!("POST /batch HTTP/1.1"));
    "length of zero" => "200 | idle", post!("Content-Length: 0\r\n\r\n");
    "leading zeros" => "200 abc | idle", post!("Content-Length: 0003\r\n\r\nabc");
    "body arriving" => "waits", post!("Content-Length: 3\r\n\r\nab");
    "body of line ends" => "200 \r\n\r\n | idle", post!("Content-Length: 4\r\n\r\n\r\n\r\n");
    "body like a request" => "200 GET / HTTP/1.1\r\n\r\n | 200 Z | idle",
        then_next!(post!("Content-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n"));
    "empty length" => "400 | closes", post!("Content-Length:\r\n\r\n");
    "length with plus" => "400 | closes", post!("Content-Length: +1\r\n\r\nA");
    "length with minus" => "400 | closes", post!("Content-Length: -1\r\n\r\nA");
    "length of minus zero" => "400 | closes", post!("Content-Length: -0\r\n\r\n");
    "length in hexadecimal" => "400 | closes", post!("Content-Length: 0x1\r\n\r\nA");
    "length with hexadecimal digit" => "400 | closes", post!("Content-Length: a\r\n\r\n0123456789");
    "length with underscore" => "400 | closes", post!("Content-Length: 1_0\r\n\r\n0123456789");
    "length with fraction" => "400 | closes", post!("Content-Length: 1.0\r\n\r\nA");
    "length with exponent" => "400 | closes", post!("Content-Length: 1e0\r\n\r\nA");
    "length with space inside" => "400 | closes", post!("Content-Length: 1 1\r\n\r\n01234567890");
    "length with word behind" => "400 | closes", post!("Content-Length: 1 A\r\n\r\nA");
    "length in quotes" => "400 | closes", post!("Content-Length: \"1\"\r\n\r\nA");
    "length with high bytes" => "400 | closes", post!("Content-Length: 1\u{a0}\r\n\r\nA");
    "length in other digits" => "400 | closes", post!("Content-Length: \u{0661}\r\n\r\nA");
    "list of equal lengths" => "400 | closes", post!("Content-Length: 1, 1\r\n\r\nA");
    "list of lengths" => "400 | closes", post!("Content-Length: 1,2\r\n\r\nA");
    "length with comma" => "400 | closes", post!("Content-Length: 1,\r\n\r\nA");
    "equal lengths twice" => "400 | closes",
        post!("Content-Length: 1\r\nContent-Length: 1\r\n\r\nA");
    "different lengths" => "400 | closes", post!("Content-Length: 0\r\nContent-Length: 1\r\n\r\nA");
    "lengths in other order and case" => "400 | closes",
        post!("content-length: 6\r\nCONTENT-LENGTH: 5\r\n\r\n12345G");
    "length of 2^64 - 1" => "413 | closes", post!("Content-Length: 18446744073709551615\r\n\r\n");
    "length of 2^64" => "400 | closes", post!("Content-Length: 18446744073709551616\r\n\r\n");
    "length of 2^64 + 1" => "400 | closes", post!("Content-Length: 18446744073709551617\r\n\r\nA");
    "length of 2^32 + 1" => "413 | closes", post!("Content-Length: 4294967297\r\n\r\nA");
    "length of forty digits" => "400 | closes",
        post!("Content-Length: 1000000000000000000000000000000000000001\r\n\r\n");
    "length just above its limit" => "413 | waits", post!("Content-Length: 1001\r\n\r\n");
    "coding and length" => "400 | closes",
        post!("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET");
    "length and coding" => "400 | closes",
        post!("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG");
    "length of zero and coding" => "400 | closes",
        post!("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "length and unknown coding" => "400 | closes",
        post!("Content-Length: 1\r\nTransfer-Encoding: x\r\n\r\nA");
    "length and empty coding" => "400 | closes",
        post!("Content-Length: 1\r\nTransfer-Encoding:\r\n\r\nA");
    "GET with coding and length" => "400 | closes",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n\
         0\r\n\r\n";
    "coding in version 1.0" => "400 | closes",
        "POST /batch HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    "coding kept alive in version 1.0" => "400 | closes",
        "POST /batch HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n";
    "coding in capitals" => "200 A | idle",
        post!("Transfer-Encoding: CHUNKED\r\n\r\n1\r\nA\r\n0\r\n\r\n");
    "coding with white space around" => "200 A | idle",
        post!("Transfer-Encoding: \tchunked \r\n\r\n1\r\nA\r\n0\r\n\r\n");
    "coding of gzip" => "501 | closes", post!("Transfer-Encoding: gzip\r\n\r\n");
    "coding of identity" => "501 | closes", post!("Transfer-Encoding: identity\r\n\r\n");
    "empty coding" => "501 | closes", post!("Transfer-Encoding:\r\n\r\n");
    "gzip, then chunked" => "501 | closes",
        post!("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
    "chunked, then gzip" => "501 | closes",
        post!("Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n");
    "chunked, then identity" => "501 | closes",
        post!("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n");
    "chunked twice in a list" => "501 | closes",
        post!("Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n");
    "chunked in two lines" => "501 | closes",
        post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "chunked and another line" => "501 | closes",
        post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n");
    "another line and chunked" => "501 | closes",
        post!("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "coding with letter in front" => "501 | closes",
        post!("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n");
    "coding cut short" => "501 | closes", post!("Transfer-Encoding: chunke\r\n\r\n0\r\n\r\n");
    "coding in quotes" => "501 | closes", post!("Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n");
    "coding with parameter" => "501 | closes",
        post!("Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n");
    "coding with comma" => "501 | closes", post!("Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n");
    "coding behind a comma" => "501 | closes",
        post!("Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n");
    "coding behind a vertical tab" => "400 | closes",
        post!("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n");
    "coding with NUL behind" => "400 | closes",
        post!("Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n");
    "coding behind a bare line feed" => "400 | closes",
        post!("X: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "coding behind a bare return" => "400 | closes",
        post!("X: x\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    "coding under another name" => "200 A | idle",
        post!("Transfer_Encoding: chunked\r\nContent-Length: 1\r\n\r\nA");
    "coding of content is another matter" => "200 A | idle",
        post!("Content-Encoding: chunked\r\nContent-Length: 1\r\n\r\nA");
    "coding unknown, target too" => "501 | closes",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n";
}

// RFC 9112 section 7: chunks, extensions, trailers.
table! { CHUNKS:
    "no data" => "200 | idle", chunks!("0\r\n\r\n");
    "several chunks" => "200 abcde | idle", chunks!("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    "sizes in either case" => "200 01234567890123456789A | idle",
        chunks!("a\r\n0123456789\r\nB\r\n0123456789A\r\n0\r\n\r\n");
    "leading zeros in a size" => "200 A | idle", chunks!("0001\r\nA\r\n00\r\n\r\n");
    "size of sixteen digits" => "200 A | idle", chunks!("0000000000000001\r\nA\r\n0\r\n\r\n");
    "size of seventeen digits" => "400 | closes", chunks!("00000000000000001\r\nA\r\n0\r\n\r\n");
    "data of line ends" => "200 \r\n\r\n | idle", chunks!("4\r\n\r\n\r\n\r\n0\r\n\r\n");
    "data like a last chunk" => "200 0\r\n\r\n | idle", chunks!("5\r\n0\r\n\r\n\r\n0\r\n\r\n");
    "chunks and the next request" => "200 A | 200 Z | idle",
        then_next!(chunks!("1\r\nA\r\n0\r\n\r\n"));
    "chunks without their end" => "waits", chunks!("1\r\nA\r\n0\r\n");
    "size without digits" => "400 | closes", chunks!("\r\nA\r\n0\r\n\r\n");
    "size without digits and an empty line" => "400 | closes", chunks!("\r\n\r\n");
    "extension without size" => "400 | closes", chunks!(";a\r\n\r\n");
    "size with sign" => "400 | closes", chunks!("+1\r\nA\r\n0\r\n\r\n");
    "negative size" => "400 | closes", chunks!("-1\r\nA\r\n0\r\n\r\n");
    "size with prefix" => "400 | closes", chunks!("0x1\r\nA\r\n0\r\n\r\n");
    "size with underscore" => "400 | closes", chunks!("1_0\r\n0123456789012345\r\n0\r\n\r\n");
    "size behind a space" => "400 | closes", chunks!(" 1\r\nA\r\n0\r\n\r\n");
    "size with space behind" => "400 | closes", chunks!("1 \r\nA\r\n0\r\n\r\n");
    "size with no digit" => "400 | closes", chunks!("g\r\nA\r\n0\r\n\r\n");
    "size with comma" => "400 | closes", chunks!("1,1\r\nA\r\n0\r\n\r\n");
    "size of two numbers" => "400 | closes", chunks!("1 1\r\nA\r\n0\r\n\r\n");
    "size with NUL" => "400 | closes", chunks!("1\0\r\nA\r\n0\r\n\r\n");
    "size of 2^64 - 1" => "413 | closes", chunks!("ffffffffffffffff\r\nA");
    "size of 2^64" => "400 | closes", chunks!("10000000000000000\r\nA");
    "size of 2^63" => "413 | closes", chunks!("8000000000000000\r\nA");
    "sizes that overflow together" => "413 | closes", chunks!("1\r\nA\r\nffffffffffffffff\r\nA");
    "size above the limit" => "413 | closes", chunks!("3e9\r\n");
    "size at the limit" => "waits", chunks!("3e8\r\n");
    "sizes above the limit together" => "413 | closes", chunks!("1\r\nA\r\n3e8\r\n");
    "line feed behind a size" => "400 | closes", chunks!("1\nA\r\n0\r\n\r\n");
    "return behind a size" => "400 | closes", chunks!("1\rA\r\n0\r\n\r\n");
    "two returns behind a size" => "400 | closes", chunks!("1\r\r\nA\r\n0\r\n\r\n");
    "line feed behind data" => "400 | closes", chunks!("1\r\nA\n0\r\n\r\n");
    "nothing behind data" => "400 | closes", chunks!("1\r\nA0\r\n\r\n");
    "data longer than its size" => "400 | closes", chunks!("1\r\nAB\r\n0\r\n\r\n");
    "data shorter than its size" => "400 | closes", chunks!("3\r\nA\r\n0\r\n\r\n");
    "another byte and a line feed behind data" => "400 | closes",
        chunks!("1\r\nAX\n0\r\n\r\n");
    "return without line feed behind data" => "400 | closes", chunks!("1\r\nA\rX0\r\n\r\n");
    "line feed ends the trailer" => "400 | closes", chunks!("0\r\n\n");
    "line feed behind the last size" => "400 | closes", chunks!("0\n\r\n");
    "extension" => "200 A | idle", chunks!("1;a=b\r\nA\r\n0;c\r\n\r\n");
    "extension with quotes" => "200 A | idle", chunks!("1;a=\"b;c\"\r\nA\r\n0\r\n\r\n");
    "extension with escaped quote" => "200 A | idle",
        chunks!("1;a=\"\\\"b\"\r\nA\r\n0\r\n\r\n");
    "extension with open quote" => "400 | closes", chunks!("1;a=\"b\r\nA\r\n0\r\n\r\n");
    "extension with quote closed by an escape" => "400 | closes",
        chunks!("1;a=\"b\\\"\r\nA\r\n0\r\n\r\n");
    "extension with white space" => "200 A | idle", chunks!("1 ; a = b\t\r\nA\r\n0\r\n\r\n");
    "extension without name" => "400 | closes", chunks!("1;\r\nA\r\n0\r\n\r\n");
    "extension with line feed" => "400 | closes", chunks!("1;a\nA\r\n0\r\n\r\n");
    "extension with return" => "400 | closes", chunks!("1;a\rb\r\nA\r\n0\r\n\r\n");
    "extension with quoted line end" => "400 | closes", chunks!("1;a=\"\r\n\"\r\nA\r\n0\r\n\r\n");
    "extension with NUL" => "400 | closes", chunks!("1;a\0\r\nA\r\n0\r\n\r\n");
    "size line at its limit" => "400 | closes",
        chunks!("1;345678901234567890123\r\nA\r\n0\r\n\r\n");
    "size line within its limit" => "200 A | idle",
        chunks!("1;3456789012345678901\r\nA\r\n0\r\n\r\n");
    "size line without an end" => "400 | closes", chunks!("1;34567890123456789012345");
    "trailer" => "200 A | idle", chunks!("1\r\nA\r\n0\r\nX: y\r\nZ:\r\n\r\n");
    "trailer with length is ignored" => "200 | 200 Z | idle",
        then_next!(chunks!("0\r\nContent-Length: 9\r\n\r\n"));
    "trailer with space before the colon" => "400 | closes", chunks!("0\r\nX : y\r\n\r\n");
    "trailer without colon" => "400 | closes", chunks!("0\r\nX\r\n\r\n");
    "trailer without name" => "400 | closes", chunks!("0\r\n: y\r\n\r\n");
    "trailer folded" => "400 | closes", chunks!("0\r\nX: y\r\n z\r\n\r\n");
    "trailer with line feed" => "400 | closes", chunks!("0\r\nX: y\n\r\n");
    "trailer with return" => "400 | closes", chunks!("0\r\nX: y\rz\r\n\r\n");
    "trailer with NUL" => "400 | closes", chunks!("0\r\nX: \0\r\n\r\n");
    "trailer at its limit" => "200 | idle",
        chunks!("0\r\nX: 4567890123456789012345678901234567\r\n\r\n");
    "trailer above its limit" => "431 | closes",
        chunks!("0\r\nX: 456789012345678901234567890123456789\r\n\r\n");
    "request as trailer" => "400 | closes", chunks!("0\r\nGET / HTTP/1.1\r\n\r\n");
    "body in chunks to a GET" => "405 | closes",
        "GET /batch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
}

// RFC 9112 section 9 and RFC 9110 section 10.1.1: connections, pipelining, expectations.
table! { CONNECTIONS:
    "three requests at once" => "200 A | 200 B | 200 Z | idle",
        then_next!(post!("Content-Length: 1\r\n\r\nAPOST /batch HTTP/1.1\r\nHost: a\r\n\
                          Content-Length: 1\r\n\r\nB"));
    "empty line between requests" => "200 A | 200 Z | idle",
        then_next!(post!("Content-Length: 1\r\n\r\nA\r\n"));
    "two empty lines between requests" => "200 A | 400 | closes",
        then_next!(post!("Content-Length: 1\r\n\r\nA\r\n\r\n"));
    "body longer than its length" => "200 A | 400 | closes", post!("Content-Length: 1\r\n\r\nA{}");
    "close" => "200 A | closes",
        then_next!(post!("Connection: close\r\nContent-Length: 1\r\n\r\nA"));
    "close in capitals" => "200 A | closes",
        post!("Connection: CLOSE\r\nContent-Length: 1\r\n\r\nA");
    "close in a list" => "200 A | closes",
        post!("Connection: x, ,close\r\nContent-Length: 1\r\n\r\nA");
    "close in a second line" => "200 A | closes",
        post!("Connection: keep-alive\r\nConnection: close\r\nContent-Length: 1\r\n\r\nA");
    "close and keep-alive" => "200 A | closes",
        post!("Connection: close, keep-alive\r\nContent-Length: 1\r\n\r\nA");
    "keep-alive" => "200 A | idle", post!("Connection: keep-alive\r\nContent-Length: 1\r\n\r\nA");
    "word that begins with close" => "200 A | idle",
        post!("Connection: closed\r\nContent-Length: 1\r\n\r\nA");
    "close with refusal" => "405 | closes",
        then_next!("GET /batch HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    "version 1.0" => "200 A | closes", "POST /batch HTTP/1.0\r\nContent-Length: 1\r\n\r\nA";
    "version 1.0 kept alive" => "200 A | idle",
        "POST /batch HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nA";
    "version 1.0 with close and keep-alive" => "200 A | closes",
        "POST /batch HTTP/1.0\r\nConnection: keep-alive, close\r\nContent-Length: 1\r\n\r\nA";
    "version 1.0 with two hosts" => "400 | closes",
        "POST /batch HTTP/1.0\r\nHost: a\r\nHost: a\r\nContent-Length: 1\r\n\r\nA";
    "version 1.0 without length" => "411 | closes", "POST /batch HTTP/1.0\r\n\r\n";
    "version 1.0, then 1.1" => "200 A | 200 Z | idle",
        then_next!("POST /batch HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nA");
    "expectation" => "200 A | idle", post!("Expect: 100-continue\r\nContent-Length: 1\r\n\r\nA");
    "expectation in capitals" => "200 A | idle",
        post!("Expect: 100-CONTINUE\r\nContent-Length: 1\r\n\r\nA");
    "expectation of chunks" => "200 A | idle",
        post!("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n0\r\n\r\n");
    "expectation, refused" => "404 | closes",
        then_next!("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\
                    Content-Length: 1\r\n\r\n");
    "expectation without body, refused" => "404 | 200 Z | idle",
        then_next!("GET /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n");
    "another expectation" => "417 | closes", post!("Expect: 200-ok\r\nContent-Length: 1\r\n\r\nA");
    "another expectation without body" => "417 | 200 Z | idle",
        then_next!(post!("Expect: x\r\nContent-Length: 0\r\n\r\n"));
    "list of expectations" => "417 | closes",
        post!("Expect: 100-continue, x\r\nContent-Length: 1\r\n\r\nA");
    "expectation with parameter" => "417 | closes",
        post!("Expect: 100-continue;a=b\r\nContent-Length: 1\r\n\r\nA");
    "empty expectation" => "200 A | idle", post!("Expect:\r\nContent-Length: 1\r\n\r\nA");
    "expectation of version 1.0" => "200 A | closes",
        "POST /batch HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nA";
}
