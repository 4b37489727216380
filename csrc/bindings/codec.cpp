// The codec of plan/support.h for NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../plan/support.h"

namespace py = pybind11;

namespace sparsegan {
namespace {

using Positions = py::array_t<int32_t, py::array::c_style>;  // without forcecast: int64 or float arrays are a TypeError

void check_rank(const Positions& positions) {
  if (positions.ndim() != 1) {
    throw std::invalid_argument("support has " + std::to_string(positions.ndim()) + " dimensions; it must have 1");
  }
}

py::bytes encode(const Positions& positions, int64_t size) {
  check_rank(positions);
  // Copied first: another thread may write into the array at any time, and only what was checked may be coded.
  const std::vector<int32_t> own(positions.data(), positions.data() + positions.size());
  std::vector<uint8_t> bytes;
  {
    py::gil_scoped_release release;
    bytes = encode_support(own.data(), own.size(), size);
  }
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Positions decode(const py::bytes& code, int64_t size, size_t count) {
  const std::string_view view = code;
  check_support_count(view.size(), size, count);
  Positions positions(static_cast<py::ssize_t>(count));
  int32_t* out = positions.mutable_data();
  {
    py::gil_scoped_release release;
    decode_support(reinterpret_cast<const uint8_t*>(view.data()), view.size(), size, count, out);
  }
  return positions;
}

void check(const Positions& positions, int64_t size) {
  check_rank(positions);
  py::gil_scoped_release release;
  check_support(positions.data(), static_cast<size_t>(positions.size()), size);
}

}  // namespace

void bind_codec(py::module_& m) {
  m.def("encode_support", &encode, py::arg("positions"), py::arg("size"),
        "int32 positions, sorted, unique, in [0, size), as bytes (Golomb-Rice codes of the gaps).");
  m.def("decode_support", &decode, py::arg("code"), py::arg("size"), py::arg("count"),
        "The int32 positions that encode_support coded; ValueError for bytes that are not exactly such a code.");
  m.def("check_support", &check, py::arg("positions"), py::arg("size"),
        "ValueError, naming index and value, unless positions are sorted, unique and in [0, size).");
}

}  // namespace sparsegan
