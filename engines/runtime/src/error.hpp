// Errors a user can fix, with the codes and sentences of vtn_export/errors.py.
#pragma once

#include <stdexcept>
#include <string>

#include "vtn/vtn.h"

namespace vtn::detail {

class Error : public std::runtime_error {
public:
    Error(int code, const std::string& message) : std::runtime_error(message), code(code) {}
    const int code;
};

}  // namespace vtn::detail
