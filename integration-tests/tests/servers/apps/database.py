import psycopg2


def app(environ, start_response):
    connection = psycopg2.connect("")
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'hel' || 'lo'")
        word = cursor.fetchone()[0]
    connection.close()
    start_response("200 OK", [("content-type", "text/plain")])
    return [word.encode()]
