;; It needs what no engine has.
(module
  (import "env" "missing" (func $missing))
  (memory (export "memory") 1)
  (func (export "_start") (call $missing)))
