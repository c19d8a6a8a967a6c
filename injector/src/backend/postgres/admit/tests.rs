use super::*;
use bytes::BytesMut;
use postgres_protocol::message::backend::Message;

#[test]
fn a_refusal_is_an_error_as_the_server_sends_it() {
    let bytes = error_response(&refuse("3D000", "no"));
    let Some(Message::ErrorResponse(body)) = Message::parse(&mut BytesMut::from(&bytes[..])).unwrap() else {
        panic!("{bytes:?}");
    };
    use fallible_iterator::FallibleIterator;
    let fields: Vec<_> =
        body.fields().map(|field| Ok((field.type_(), field.value_bytes().to_vec()))).collect().unwrap();
    let expected = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', "3D000"), (b'M', "no")];
    assert_eq!(fields, expected.map(|(tag, value)| (tag, value.as_bytes().to_vec())));
}
