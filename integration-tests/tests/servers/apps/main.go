package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"os"

	_ "github.com/lib/pq"
)

func main() {
	database, err := sql.Open("postgres", "")
	if err != nil {
		panic(err)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		var word string
		if err := database.QueryRow("SELECT 'hel' || 'lo'").Scan(&word); err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		fmt.Fprint(w, word)
	})
	panic(http.ListenAndServe(":"+os.Getenv("PORT"), nil))
}
