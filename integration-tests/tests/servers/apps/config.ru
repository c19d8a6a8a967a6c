require 'pg'

DATABASE = PG.connect

run ->(env) { [200, { 'content-type' => 'text/plain' }, [DATABASE.exec("SELECT 'hel' || 'lo'").getvalue(0, 0)]] }
