compile_error!("a look only");
