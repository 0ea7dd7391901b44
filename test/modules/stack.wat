;; It calls itself until the engine's stack is full. What it does after each
;; call keeps compilers from making a loop of it.
(module
  (memory (export "memory") 1)
  (func $deeper (param i32)
    (call $deeper (i32.add (local.get 0) (i32.const 1)))
    (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (local.get 0))))
  (func (export "_start") (call $deeper (i32.const 0))))
