// vtn::Error: the sentence and code of a failed call.
#pragma once

#include <stdexcept>
#include <string>

#include "vtn/vtn.h"

namespace vtn {

class Error : public std::runtime_error {
public:
    Error(int code, const std::string& message) : std::runtime_error(message), code_(code) {}
    int code() const noexcept { return code_; }  // VTN_ERROR_*: the command line's exit codes

private:
    int code_;
};

inline void check(int code) {
    if (code != VTN_OK) throw Error(code, vtn_last_error());
}

}  // namespace vtn
