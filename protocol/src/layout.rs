//! Fixed-size structures of the wire, declared with the offset of each field.
//!
//! The protocol has no padding (SPEC.md section 2), so a field begins where the previous one ends.
//! [`wire_struct!`] checks every declared offset, and the size of the whole, at compile time.

/// A type whose encoding always has the same size.
pub(crate) trait WireSize {
    /// Bytes of the encoding.
    const WIRE_SIZE: usize;
}

macro_rules! impl_wire_size {
    ($($integer:ty),*) => {
        $(impl WireSize for $integer {
            const WIRE_SIZE: usize = size_of::<$integer>();
        })*
    };
}

impl_wire_size!(u8, u16, u32, u64, i64);

impl<const N: usize> WireSize for [u8; N] {
    const WIRE_SIZE: usize = N;
}

/// Declares a structure of integers and byte arrays, with its size and its offsets in bytes. Its
/// fields are encoded in the order of the declaration.
macro_rules! wire_struct {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident: $size:literal bytes {
            $($(#[$field_attribute:meta])* $offset:literal => $field_visibility:vis $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)*
        }

        // Not derived: bincode's derive does not parse a visibility that a macro has captured.
        impl bincode::Encode for $name {
            fn encode<E: bincode::enc::Encoder>(
                &self,
                encoder: &mut E,
            ) -> Result<(), bincode::error::EncodeError> {
                $(bincode::Encode::encode(&self.$field, encoder)?;)*
                Ok(())
            }
        }

        impl<Context> bincode::Decode<Context> for $name {
            fn decode<D: bincode::de::Decoder<Context = Context>>(
                decoder: &mut D,
            ) -> Result<Self, bincode::error::DecodeError> {
                Ok(Self { $($field: bincode::Decode::decode(decoder)?,)* })
            }
        }

        impl $crate::layout::WireSize for $name {
            const WIRE_SIZE: usize = $size;
        }

        const _: () = {
            let end = 0;
            $(
                assert!(end == $offset, concat!("offset of ", stringify!($field)));
                let end = end + <$type as $crate::layout::WireSize>::WIRE_SIZE;
            )*
            assert!(end == $size, concat!("size of ", stringify!($name)));
        };
    };
}

pub(crate) use wire_struct;
