// The records of a zip archive that were stored without compression, as PyTorch writes them.
#pragma once
#include "file.h"

namespace pupil::data {

// Name -> content, mapped. Sizes and offsets come from the central directory (also zip64) and are
// checked against the file and the local headers. Names are keys only, never paths. Throws
// InputError beginning with `where` for anything damaged, compressed or encrypted.
std::map<std::string, std::string_view> read_zip(const MappedFile&, const std::string& where);

}  // namespace pupil::data
